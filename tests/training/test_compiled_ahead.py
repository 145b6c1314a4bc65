"""Functions compiled in a thread: the call finds the executable, and raises its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.training.compiled_ahead import CompiledAhead
from hive_jax.training.run_timing import listen_to_compilations


def test_a_call_does_not_compile_again():
    placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    spec = jax.ShapeDtypeStruct((3,), np.float32, sharding=placed)
    double = CompiledAhead(jax.jit(lambda x: 2 * x, out_shardings=placed))
    double.compile_ahead(spec)
    x = jax.device_put(np.arange(3, dtype=np.float32), placed)
    double._compilation.result()
    compiled = []
    listen_to_compilations(lambda name, seconds: compiled.append(name))
    np.testing.assert_array_equal(double(x), [0, 2, 4])
    assert compiled == []
    # Other shapes compile as usual.
    longer = jax.device_put(np.ones(5, np.float32), placed)
    np.testing.assert_array_equal(double(longer), [2] * 5)
    assert "compiling" in compiled


def test_an_error_of_the_compilation_is_raised_by_the_call():
    broken = CompiledAhead(jax.jit(lambda x: jnp.ones(2) + jnp.ones(3)))
    broken.compile_ahead(jax.ShapeDtypeStruct((), np.float32))
    with pytest.raises(TypeError, match="broadcast"):
        broken(jnp.float32(0))
