"""
Write the wavelengths of the 7,514 pixels of an APOGEE spectrum [A, vacuum], one a line.

The file beside this script was made with it:

    python dataset/write_wavelength.py dataset/apogee_wavelength_sol.csv
"""

import argparse
from pathlib import Path

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, write_wavelength
from stellarperceptron.utils.arguments import HelpFormatter, run_script


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("output", type=Path, help="CSV file to write")
    output = parser.parse_args().output
    write_wavelength(output)
    print(f"{output}: {len(APOGEE_WAVELENGTH)} wavelengths")


if __name__ == "__main__":
    run_script(main)
