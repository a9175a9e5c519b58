from __future__ import annotations

import pytest
import torch

from counterray.nn.resnet import BasicBlock, ResNet18


def test_it_is_the_published_network() -> None:
    # 11 689 512 parameters for 3 channels and 1000 classes, less 2 of 3 channels of 64 kernels of 7 × 7.
    count = sum(parameter.numel() for parameter in ResNet18(1000).parameters())
    assert count == 11_689_512 - 2 * 64 * 49


def test_resolution_falls_by_32() -> None:
    network = ResNet18(3, width=4).eval()
    image = torch.zeros(2, 1, 64, 64)
    stem = network.pool(network.stem(image))
    assert stem.shape == (2, 4, 16, 16)
    assert network.stages(stem).shape == (2, 32, 2, 2)
    assert network(image).shape == (2, 3)


def test_a_block_whose_branch_is_silent_is_a_rectifier() -> None:
    block = BasicBlock(2, 2).eval()
    torch.nn.init.zeros_(block.norm_out.weight)
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x.clamp(min=0))


def test_a_block_projects_where_its_shape_changes() -> None:
    assert BasicBlock(2, 6, stride=2)(torch.zeros(2, 2, 8, 8)).shape == (2, 6, 4, 4)


def test_evaluation_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = ResNet18(2, width=4)
    network(torch.randn(8, 1, 32, 32))
    network.eval()
    image = torch.randn(5, 1, 32, 32)
    torch.testing.assert_close(network(image)[2:3], network(image[2:3]))


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"outputs \(0\) and width \(8\) must be 1 or more"):
        ResNet18(0, width=8)
