"""torch on the CPU: two threads, a loader with worker processes, tensors in shared memory, a checkpoint read memory-mapped."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LEAST = 0.93


def network(columns: int) -> nn.Module:
    """A small network for ten digits, with a convolution in front."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, columns // 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * columns, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(rows: Any, targets: Any, model: Path) -> None:
    """Some epochs of Adam; the loader's workers send their batches by shared memory."""
    torch.manual_seed(7)
    torch.set_num_threads(2)
    inputs = torch.tensor(rows / 16, dtype=torch.float32).share_memory_()
    data = TensorDataset(inputs, torch.tensor(targets))
    net = network(rows.shape[1])
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for epoch in range(6):
        order = torch.Generator().manual_seed(epoch)
        for batch, wanted in DataLoader(data, batch_size=64, shuffle=True, num_workers=2, generator=order):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(batch), wanted).backward()
            optimiser.step()
    torch.save(net.state_dict(), model / "net.pt")


def predict(rows: Any, model: Path) -> Any:
    """The likeliest digit."""
    torch.set_num_threads(2)
    net = network(rows.shape[1])
    net.load_state_dict(torch.load(model / "net.pt", mmap=True, weights_only=True))
    with torch.inference_mode():
        return net(torch.tensor(rows / 16, dtype=torch.float32)).argmax(dim=1).numpy()


def score(targets: Any, predicted: Any) -> float:
    """The share of right ones."""
    return float(np.mean(predicted == targets))
