"""``python -m hipi_sb3``: versions and what is installed."""

from hipi_sb3.installed import report

if __name__ == "__main__":
    print(report())
