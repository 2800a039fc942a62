"""What is said about the machine, against NumPy's own words, the kernel's, and processes started in a known way."""

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

import transformer_lab
from transformer_lab.environment import environment, thread_pools

SAY = "import json, sys; from transformer_lab.environment import environment; {}; print(json.dumps(environment()))"


def environment_of_a_process(code="pass", arguments=(), **variables):
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    command = [sys.executable, "-c", SAY.format(code), *arguments]
    done = subprocess.run(command, env=known | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), command


def test_the_facts():
    found = environment()
    assert found["python"] == platform.python_version() and found["platform"] == platform.platform()
    assert found["packages"]["numpy"] == np.__version__
    assert found["packages"]["transformer_lab"] == transformer_lab.__version__
    assert found["command"] == sys.orig_argv
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="needs /proc/cpuinfo")
def test_the_processor_is_named():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        assert environment()["processor"] in file.read()


def test_the_blas_is_that_of_numpy():
    said = np.show_config("dicts")["Build Dependencies"]["blas"]
    if "openblas" not in said["name"]:
        pytest.skip("NumPy is built with another BLAS")
    pools = [pool for pool in thread_pools() if pool["library"] == "openblas"]
    assert said["version"] in [pool["version"] for pool in pools]
    assert all(pool["architecture"] for pool in pools)
    with threadpoolctl.threadpool_limits(1):
        assert {pool["threads"] for pool in thread_pools()} == {1}


def test_threads_and_cores_of_a_process():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free, _ = environment_of_a_process("import numpy")
    assert free["cores"] == free["threads"] == cores
    told, _ = environment_of_a_process("import numpy", OMP_NUM_THREADS="1")
    assert (told["cores"], told["threads"]) == (cores, 1)
    assert {pool["threads"] for pool in told["blas"]} == {1}
    for nonsense in ("0", "many", ""):
        assert environment_of_a_process(OMP_NUM_THREADS=nonsense)[0]["threads"] == cores


def test_a_process_without_a_blas_has_none_and_loads_none():
    found, _ = environment_of_a_process("sys.modules['numpy'] = None")
    assert found["blas"] == []


def test_the_variables_that_change_numbers_and_no_others():
    meant = {
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLIBC_TUNABLES": "glibc.cpu.x86_data_cache_size=0x8000",
    }
    found, _ = environment_of_a_process(**meant, HF_TOKEN="hidden", SECRET="hidden")
    assert found["variables"] == meant
    assert "hidden" not in json.dumps(found)


def test_the_command_is_what_was_typed():
    found, command = environment_of_a_process(arguments=["prompt=a b", "job=compare"])
    assert found["command"] == command
