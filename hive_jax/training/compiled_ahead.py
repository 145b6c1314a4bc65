"""A jitted function that is compiled in a thread, before its first call."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hive_jax.training import watchdog

# One for all functions, in the order of the calls: XLA uses several cores for a program,
# and the one that is needed first should not wait for the others.
_THREAD = ThreadPoolExecutor(max_workers=1)


class CompiledAhead:
    """A jitted function that can be compiled before its arguments exist.

    XLA compiles without holding Python's lock, so that the main thread reads the weights
    and trains meanwhile.

    Args:
      jitted: result of `jax.jit`.

    Attributes:
      lower, trace: those of the jitted function.
    """

    def __init__(self, jitted: Callable):
        self._jitted = jitted
        self._compilation: Future | None = None
        self.lower, self.trace = jitted.lower, jitted.trace

    def compile_ahead(self, *abstract) -> None:
        """Starts to trace and compile the function in a thread.

        Args:
          *abstract: trees of `jax.ShapeDtypeStruct` with the shapes and shardings of the
            next call. A call with others compiles again, as of any jitted function.
        """
        # JAX keeps the executable, and the call below finds it.
        self._compilation = _THREAD.submit(
            lambda: self._jitted.lower(*abstract).compile()
        )

    def __call__(self, *arguments) -> Any:
        """Calls the function; waits for its compilation first.

        Args:
          *arguments: as of the jitted function.
        """
        if self._compilation is not None:
            with watchdog.phase("compilation ahead"):
                self._compilation.result()
            self._compilation = None
        return self._jitted(*arguments)
