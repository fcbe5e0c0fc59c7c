"""Stands in for torchvision, whose wheel does not load beside a CPU build of torch."""
