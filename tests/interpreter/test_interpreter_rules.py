"""Every shipped rule in Triton's interpreter; see test_interpreter.py."""

import pytest

from optgen import library
from optgen.backends.triton.kernels import interpreting
from optgen.library import runnable
from optgen.passes.specialise import shaped
from optgen.verify.differential import Case, run

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("name", library.names())
def test_rules_agree_with_the_reference(name):
    program, _ = runnable([library.rule(name)])
    outcome = run(program, Case("triton", "fp32", None, {}, thorough=shaped(program), steps=3))
    assert outcome.failure is None
