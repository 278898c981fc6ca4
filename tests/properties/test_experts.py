"""Models with experts: adapters on routers, on experts that some tokens go through or none, on what all tokens share.

Few tokens and many experts: most batches leave some expert without a token, and a request of one token is drawn as
often as not. In some mixtures every expert is chosen. Bits are not compared: how many rows an expert has depends on
what the neighbours choose, and with it the order in which a BLAS adds."""

import numpy as np
from hypothesis import given, settings
from properties.test_batching import check_batch_equals_alone
from properties.test_definition import check_unmerged_equals_merged
from support.build import Case
from support.experts import expert_cases
from support.tables import every_table

from refimpl import Ops, logits
from refimpl.ops import REFERENCE


@every_table
@settings(max_examples=40)
@given(case=expert_cases())
def test_unmerged_equals_merged(ops: Ops, case: Case) -> None:
    check_unmerged_equals_merged(ops, case)


@every_table
@settings(max_examples=25)
@given(case=expert_cases())
def test_a_batch_equals_each_request_alone(ops: Ops, case: Case) -> None:
    check_batch_equals_alone(ops, case)


@settings(max_examples=40)
@given(case=expert_cases())
def test_the_fast_form_is_the_definition(case: Case) -> None:
    model, _, requests = case
    for fast, slow in zip(logits(model, requests), logits(model, requests, REFERENCE), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10)
