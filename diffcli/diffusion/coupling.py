"""The pairing of noise and images: at random, or such that the pairs of a batch are close together.

Optimal transport within a batch makes the paths from noise to data cross less, so that they are straighter and need fewer steps.
"""

from typing import Literal

import torch
from torch import Tensor

from diffcli.transfer import moved

Coupling = Literal["none", "optimal_transport"]


def paired(eps: Tensor, x0: Tensor) -> Tensor:
    """The same noises in the order that makes sum |x0_i - eps_i|^2 least; both (B, C, *S).

    The noise of an image depends on the other images of the micro-batch. So here, and only here, a run with other micro-batches
    or processes is another run. The host reads the B x B distances, which is one wait for each micro-batch. Source: Pooladian
    et al. 2023 (arXiv 2304.14772), Tong et al. 2023 (arXiv 2302.00482), section 3.2.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and most runs do without

    with torch.autocast(x0.device.type, enabled=False):  # else in bf16, which tells few pairs apart
        likeness = x0.flatten(1).float() @ eps.flatten(1).float().T  # |x0 - eps|^2 without terms that no order changes
    _, order = linear_sum_assignment(likeness.cpu().double().numpy(), maximize=True)
    return eps[moved(torch.from_numpy(order), eps.device)]
