"""The machine and the software of a run: what one needs to run it again and get the same numbers.

It looks at what is installed and loaded, and imports no framework for it. A BLAS that is linked into another library,
as MKL and oneDNN are in torch, XLA's own code, and a device are not seen here; their version is that of the package.
"""

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import threadpoolctl

import transformer_lab

PACKAGES = (
    "numpy",
    "torch",
    "jax",
    "jaxlib",
    "transformers",
    "array-api-compat",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "hydra-core",
)
# Variables that change numbers or the number of threads, by how their names begin.
VARIABLES = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "OPENBLAS_",
    "GOTO_NUM_THREADS",
    "MKL_",
    "BLIS_",
    "VECLIB_",
    "DNNL_",
    "ONEDNN_",
    "NPY_",
    "ATEN_",
    "TORCH_",
    "PYTORCH_",
    "JAX_",
    "XLA_",
    "TF32_",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def environment() -> dict[str, Any]:
    """The facts, ready for JSON.

    cores: the logical ones that this process may use. threads: how many the libraries take unless told otherwise.
    blas: see `thread_pools`. variables: those of VARIABLES that are set. command: as it was started, or None.
    """
    packages = {name: found for name in PACKAGES if (found := _installed_version(name)) is not None}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "threads": _threads(),
        "packages": {"transformer_lab": transformer_lab.__version__} | packages,
        "blas": thread_pools(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _matters(name)},
        "command": list(sys.orig_argv) or None,
    }


def thread_pools() -> list[dict[str, Any]]:
    """The BLAS and OpenMP libraries that are loaded now, in the order of their names.

    library, version (None for OpenMP, which does not tell), threads (as set now), architecture (the kernels that a
    BLAS chose for this processor; None where it does not tell). Sums depend on all of them.
    """
    found = [
        {
            "library": pool["internal_api"] if pool["user_api"] == "blas" else pool["prefix"],
            "version": pool.get("version"),
            "threads": pool["num_threads"],
            "architecture": pool.get("architecture"),
        }
        for pool in threadpoolctl.threadpool_info()
    ]
    return sorted(found, key=lambda pool: (pool["library"], pool["version"] or ""))


def _matters(name: str) -> bool:
    # threadpoolctl sets this one itself, when it is imported
    return name.startswith(VARIABLES) and name != "KMP_DUPLICATE_LIB_OK"


def _processor() -> str | None:
    """Its name in words; Linux alone keeps that in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine() or None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    """How many threads the libraries take unless told otherwise: OMP_NUM_THREADS, else the usable cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return _cores()


@cache
def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
