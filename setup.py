"""What pyproject.toml cannot say: the scripts and configurations of a clone are modules and data of the package."""

from setuptools import find_packages, setup

BESIDE = ("ds_configs", "launchers", "tools")

setup(
    packages=find_packages(include=["prealign_ds*"]) + [f"prealign_ds.{name}" for name in BESIDE],
    package_dir={f"prealign_ds.{name}": name for name in BESIDE},
    package_data={
        "prealign_ds": ["knowledge/templates/*.yaml"],
        "prealign_ds.ds_configs": ["*.json", "*.md"],
        "prealign_ds.launchers": ["presets/*", "recipes/*", "slurm/*"],
    },
)
