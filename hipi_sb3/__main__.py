"""``python -m hipi_sb3``: versions and what is installed; ``--licences``: all packages that are needed, and their licences."""

import argparse

from hipi_sb3.installed import report, report_licences

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m hipi_sb3", description=__doc__)
    parser.add_argument("--licences", action="store_true", help="names, versions and licences of all packages that are needed")
    print(report_licences() if parser.parse_args().licences else report())
