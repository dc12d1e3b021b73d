"""Command lines of the scripts."""

import argparse

__all__ = ["HelpFormatter"]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written; defaults of what need not be given."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)
