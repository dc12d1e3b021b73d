"""What the paper reports, to stand beside what is measured here.

Koblischke & Bovy (2024), arXiv:2411.04750: its Table 1, and the [Fe/H] predictions that its
repository publishes, measured with `stellarperceptron.metrics`. All of stars of APOGEE DR17.
"""

__all__ = ["PAPER_CATALOGUE_ERROR", "PAPER_FE_H", "PAPER_TABLE_1"]

PAPER_TABLE_1 = {
    "astroNN": {
        "TEFF": {"mad_std": 10.2, "rmse": 31.1},
        "LOGG": {"mad_std": 0.037, "rmse": 0.076},
        "O_FE": {"mad_std": 0.020, "rmse": 0.037},
        "MG_FE": {"mad_std": 0.015, "rmse": 0.028},
        "FE_H": {"mad_std": 0.011, "rmse": 0.029},
    },
    "pretrained": {
        "TEFF": {"mad_std": 182.9, "rmse": 328.8},
        "LOGG": {"mad_std": 0.326, "rmse": 0.504},
        "O_FE": {"mad_std": 0.038, "rmse": 0.054},
        "MG_FE": {"mad_std": 0.034, "rmse": 0.052},
        "FE_H": {"mad_std": 0.048, "rmse": 0.087},
    },
    "finetuned": {
        "TEFF": {"mad_std": 19.1, "rmse": 37.7},
        "LOGG": {"mad_std": 0.056, "rmse": 0.092},
        "O_FE": {"mad_std": 0.021, "rmse": 0.039},
        "MG_FE": {"mad_std": 0.019, "rmse": 0.030},
        "FE_H": {"mad_std": 0.019, "rmse": 0.039},
    },
}
"""Giants (1 < log g < 3.5) [K and dex]: the astroNN catalogue of DR17, and SpectraFM after stages
1 and 2 from the first half of the observed band."""

PAPER_CATALOGUE_ERROR = {
    "TEFF": 7.5,
    "LOGG": 0.023,
    "O_FE": 0.0144,
    "MG_FE": 0.0113,
    "FE_H": 0.0076,
}
"""Median error of the ASPCAP labels of these giants [K and dex]."""

PAPER_FE_H = {
    "scratch": {"rmse": 0.158, "mad_std": 0.072, "metal_poor_rmse": 0.763, "pull_std": 1.15},
    "pretrained": {"rmse": 0.254, "mad_std": 0.206, "metal_poor_rmse": 0.902, "pull_std": 3.75},
    "finetuned": {"rmse": 0.210, "mad_std": 0.135, "metal_poor_rmse": 0.510, "pull_std": 2.25},
    "hundred": {"rmse": 0.094, "mad_std": 0.056, "metal_poor_rmse": 0.232, "pull_std": 1.43},
}
"""[Fe/H] from 1.611 to 1.622 um [dex], 25,516 stars, 594 of them below -1: a network trained from
scratch on 100 stars, SpectraFM after stages 1 and 2, and after stage 3 on the same 100 stars."""
