"""How many encoder actors fit: one rule, for runs and for plans of them."""

from mmray.specs.common import Resources


def fitting(resources: Resources, cpus: float, gpus: float) -> int:
    """Encoder actors that a cluster of so many CPUs and GPUs holds; one at least.

    Where the encoder owns a GPU, a decode task fits beside the actors: they would wait for ever.
    """
    if not resources.gpus:
        return max(1, int(cpus / resources.cpus))
    by_cpus = (cpus - resources.decode_cpus) / resources.cpus
    return max(1, int(min(by_cpus, gpus / resources.gpus)))
