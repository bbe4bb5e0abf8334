"""chemprop: its own MPNN on its own data set and loader."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _checks import checks_of, verify
from _harness import Case, step_of, trainer
from chemprop import data, models, nn

EXAMPLES, BATCH = 192, 16
PIECES = ("C", "CC", "CO", "CN", "C(C)C", "C(=O)C", "C(F)C", "CCCC", "C(Cl)C", "C1CC1")


def smiles() -> list[str]:
    """Chains of three pieces each."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(PIECES), (EXAMPLES, 3), generator=generator).tolist()
    return ["".join(PIECES[i] for i in row) for row in drawn]


def fit(predictor: Any, callbacks: list[Any], double: bool, batch_norm: bool = False, classes: bool = False) -> None:
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    names = smiles()
    sizes = torch.tensor([[name.upper().count("C") - name.count("Cl") + 2.0 * name.count("O")] for name in names])
    targets = (sizes > sizes.median()).float() if classes else (sizes - sizes.mean()) / sizes.std()
    points = [data.MoleculeDatapoint.from_smi(s, t.numpy()) for s, t in zip(names, targets, strict=True)]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=BATCH, seed=0, shuffle=True)
    if double:
        collate = loader.collate_fn
        loader = torch.utils.data.DataLoader(
            loader.dataset, BATCH, shuffle=True, collate_fn=lambda x: twice(collate(x))
        )
    passing = nn.BondMessagePassing(d_h=16, depth=2, dropout=0.0 if double else 0.1)
    module = models.MPNN(passing, nn.MeanAggregation(), predictor, batch_norm=batch_norm, warmup_epochs=0)
    trainer(callbacks, double, max_epochs=4).fit(module, loader)


def twice(batch: Any) -> Any:
    """Return a batch in float64."""
    graph = batch.bmg
    graph.V, graph.E = graph.V.double(), graph.E.double()
    return type(batch)(*(part.double() if getattr(part, "dtype", None) == torch.float32 else part for part in batch))


def fit_regression(callbacks: list[Any], double: bool) -> None:
    fit(nn.RegressionFFN(input_dim=16, hidden_dim=16), callbacks, double)


def fit_batch_norm(callbacks: list[Any], double: bool) -> None:
    fit(nn.RegressionFFN(input_dim=16, hidden_dim=16), callbacks, double, batch_norm=True)


def fit_classification(callbacks: list[Any], double: bool) -> None:
    fit(nn.BinaryClassificationFFN(input_dim=16, hidden_dim=16), callbacks, double, classes=True)


def fit_mve(callbacks: list[Any], double: bool) -> None:
    fit(nn.MveFFN(input_dim=16, hidden_dim=16), callbacks, double)


def loss_of(module: Any, batch: Any, i: int) -> torch.Tensor:
    """The loss of one molecule, cut out of the batch's graph."""
    graph = copy.deepcopy(batch.bmg)
    if i >= len(graph):
        raise IndexError(i)
    atoms = graph.batch == i
    bonds = atoms[graph.edge_index[0]]
    first_atom, first_bond = int(atoms.int().argmax()), int(bonds.int().argmax())
    graph.V, graph.E, graph.batch = graph.V[atoms], graph.E[bonds], graph.batch[atoms] * 0
    graph.edge_index = graph.edge_index[:, bonds] - first_atom
    graph.rev_edge_index = graph.rev_edge_index[bonds] - first_bond
    rest = (part[i : i + 1] if isinstance(part, torch.Tensor) else part for part in batch[1:])
    return step_of(module, type(batch)(graph, *rest))


CASES = [
    Case("chemprop:regression", fit_regression, loss_of),
    Case("chemprop:batch-norm", fit_batch_norm),
    Case("chemprop:classification", fit_classification, loss_of),
    Case("chemprop:mve", fit_mve, loss_of),
]


@pytest.mark.parametrize(("case", "check"), checks_of(CASES))
def test_chemprop(case: Case, check: Any) -> None:
    verify(case, check)
