"""An export is kept under what a module's Python does, wherever that is written."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pellucid.adapters.torch.adapter import TorchAdapter
from pellucid.adapters.torch.code import code_digest

SLOPE = 0.1


def helped(x):
    return inner(x) * SLOPE


def inner(x):
    return x.relu()


class Written(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 1, 1), act

    def forward(self, x):
        return self.act(self.conv(x))


def closing_over(value):
    return lambda x: x * value


def methods(factor):
    class Own(nn.Module):
        factor = 1.0

        def scaled(self, x):
            return x * self.factor

        def forward(self, x):
            return self.scaled(x)

    class Other(Own):
        def scaled(self, x):
            return x + self.factor

    Own.__qualname__ = Other.__qualname__ = "Own"
    return (Own if factor else Other)()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x * x


Cube.__qualname__ = "Square"


def within(constant):
    if constant:
        return lambda x: next(part + 1 for part in x)
    return lambda x: next(part + 2 for part in x)


PAIRS = {
    "closure": lambda one: Written(closing_over(2.0 if one else 3.0)),
    "closure over a tensor": lambda one: Written(closing_over(torch.ones(2) * (1 + one))),
    "closure over a module": lambda one: Written(closing_over([nn.ReLU(), nn.Tanh()][one])),
    "attribute": lambda one: Written((lambda x: x + 1) if one else (lambda x: x - 1)),
    "function of torch": lambda one: Written(torch.relu if one else torch.tanh),
    "partial": lambda one: Written(partial(torch.clamp, min=0.0 if one else 1.0)),
    "method": methods,
    "autograd function": lambda one: Written((Square if one else Cube).apply),
    "inner function": lambda one: Written(within(one)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_another_program_is_another_network(pair):
    one, again, other = (code_digest(PAIRS[pair](given)) for given in (True, True, False))
    assert one == again
    assert one != other


@pytest.mark.parametrize(("name", "value"), [("SLOPE", 0.2), ("inner", lambda x: x.tanh())])
def test_what_a_helper_refers_to_counts(monkeypatch, name, value):
    before = code_digest(Written(helped))
    if callable(value):
        value.__module__ = __name__
    monkeypatch.setitem(globals(), name, value)
    assert code_digest(Written(helped)) != before


def test_two_programs_do_not_share_an_export():
    keys = {TorchAdapter(PAIRS["closure"](one)).form_key[:-1] for one in (True, False)}
    assert len(keys) == 2
