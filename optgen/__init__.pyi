"""The types of optgen's public names. Made by `optgen stubs` from the rules; do not edit."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optgen import config as config
from optgen import release as release
from optgen import schedules as schedules
from optgen import store as store
from optgen import training as training
from optgen import tree as tree
from optgen.errors import RuleError as RuleError
from optgen.library import chain as chain
from optgen.library import rule as rule
from optgen.optim.optimizer import Optimizer as Optimizer
from optgen.optim.optimizer import optimizer as optimizer

__version__: str
_HOME: dict[str, str]
_MODULES: tuple[str, ...]

__all__ = [
    "Optimizer",
    "optimizer",
    "RuleError",
    "chain",
    "rule",
    "ADOPT",
    "AMSGrad",
    "ASGD",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaHessian",
    "AdaMod",
    "AdaNorm",
    "AdaPNM",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adai",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamMini",
    "AdamP",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "AggMo",
    "AliG",
    "AvaGrad",
    "CAME",
    "DAdaptAdam",
    "DAdaptLion",
    "DAdaptSGD",
    "Descent",
    "DiffGrad",
    "DoG",
    "DoWG",
    "EMAMomentum",
    "FTRL",
    "Fromage",
    "GradientDescent",
    "Grams",
    "Gravity",
    "HeavyBall",
    "LAMB",
    "LARS",
    "LDoG",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "MoMo",
    "Momentum",
    "NAdam",
    "Nesterov",
    "NoisySGD",
    "NovoGrad",
    "OAdam",
    "OptimisersAdaBelief",
    "OptimisersAdaGrad",
    "OptimisersAdaMax",
    "OptimisersAdamW",
    "OptimisersLion",
    "OptimisersNAdam",
    "OptimisersRAdam",
    "OptimisersRMSProp",
    "OptimisersRprop",
    "PID",
    "PSGLD",
    "Padam",
    "PolyakSGD",
    "Prodigy",
    "QHAdam",
    "QHM",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "RMSpropTF",
    "RowWiseAdagrad",
    "Rprop",
    "SGD",
    "SGDP",
    "SGDSaI",
    "SGDScheduleFree",
    "SGDW",
    "SGHMC",
    "SGLD",
    "SM3",
    "Signum",
    "Sophia",
    "StableAdamW",
    "Tiger",
    "Yogi",
]

class ADOPT(Optimizer):
    """ADOPT: Adam that converges with any beta2.

    The clipped version: the first gradient only sets v, step k after it is clipped to k**0.25, as in the
    authors' code, whose defaults these are (pytorch_optimizer: to (k + 1)**0.25).  The decay is decoupled.

    Formula:
        beta1, beta2 = betas
        c = (t - 1)**0.25
        p = p*(1 - lr*weight_decay)
        m = lerp(m, clip(g / maximum(sqrt(v), eps), -c, c), 1 - beta1)
        v = g**2 if t == 1 else beta2*v + (1 - beta2)*g**2
        p = p - lr*m

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.9999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Taniguchi et al., NeurIPS 2024, arXiv:2411.02853.

    Example:
        >>> optimizer = optgen.ADOPT(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.9999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AMSGrad(Optimizer):
    """AMSGrad: Adam whose second moment never falls.

    Optimisers.jl's AMSGrad: no bias correction, as in the paper, and the three states start at eps, where the
    paper's start at 0.  torch.optim's is Adam(amsgrad=True).  Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        v_max = maximum(v_max, v)
        p = p - lr*m / (sqrt(v_max) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Reddi, Kale & Kumar, ICLR 2018, arXiv:1904.09237.

    Example:
        >>> optimizer = optgen.AMSGrad(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class ASGD(Optimizer):
    """ASGD: averaged stochastic gradient descent.

    ax is the average of p from step t0 on.  As in torch.optim eta and mu are stored for the next step.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        p = p*(1 - lambd*eta)
        p = p - eta*g
        ax = p if mu == 1 else ax + (p - ax)*mu
        eta = lr / (1 + lambd*lr*t)**alpha
        mu = 1 / maximum(1, t - t0)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        lambd (float | Tensor): default 0.0001.
        alpha (float | Tensor): default 0.75.
        t0 (float | Tensor): default 1000000.0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        ax: a value per element, in state_dtype or the parameter's dtype.
        eta: one value per tensor, float32, or float64 beside float64 parameters.
        mu: one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Polyak & Juditsky, SIAM J. Control Optim. 30, 1992.

    Example:
        >>> optimizer = optgen.ASGD(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lambd: float | Tensor = 0.0001,
        alpha: float | Tensor = 0.75,
        t0: float | Tensor = 1000000.0,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second, slow average of the gradient.

    alpha grows from 0 in alpha_warmup steps, and the slow beta from betas[0] in beta3_warmup steps, so that its
    1/log(beta) changes evenly: the paper's schedules, off by default as in the authors' code.  Defaults: theirs.

    Formula:
        beta1, beta2, beta3 = betas
        a = alpha
        if alpha_warmup is not None:
            a = alpha*minimum(t / alpha_warmup, 1)
        if beta3_warmup is not None:
            w = minimum(t / beta3_warmup, 1)
            beta3 = exp(1 / ((1 - w) / log(beta1) + w / log(beta3)))
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta1)
        slow = lerp(slow, g, 1 - beta3)
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*(m / (1 - beta1**t) + a*slow) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor, float | Tensor]): coefficients of the running
            averages or sums; default (0.9, 0.999, 0.9999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1,
            0 <= betas[2] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        alpha (float | Tensor): default 2.0; needs alpha >= 0.
        beta3_warmup (float | Tensor | None): default None.
        alpha_warmup (float | Tensor | None): default None.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg_fast: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_slow: slow, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Pagliardini, Ablin & Grangier, ICLR 2025, arXiv:2409.03137.

    Example:
        >>> optimizer = optgen.AdEMAMix(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.9999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        alpha: float | Tensor = 2.0,
        beta3_warmup: float | Tensor | None = None,
        alpha_warmup: float | Tensor | None = None,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaBelief(Optimizer):
    """AdaBelief: Adam with the variance of the gradient about its average.

    As in the paper eps joins s in every step, and sqrt(s) once more.  The decay is decoupled.  Defaults: the
    authors' adabelief-pytorch, without its rectification.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta1)
        s = beta2*s + (1 - beta2)*(g - m)**2 + eps
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(s / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-16; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_var: s, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Zhuang et al., NeurIPS 2020, arXiv:2010.07468.

    Example:
        >>> optimizer = optgen.AdaBelief(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-16,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaBound(Optimizer):
    """AdaBound: Adam's step sizes, bounded ever closer to final_lr.

    As in the authors' package: Adam's bias correction, which the paper's Algorithm 2 has not, nor 1/sqrt(t),
    which it has.  final_lr falls with lr, in proportion to its value in the first step.  weight_decay is an L2
    penalty.  Defaults: that package's.

    Formula:
        beta1, beta2 = betas
        if weight_decay != 0:
            g = g + weight_decay*p
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        if amsbound:
            v_max = maximum(v_max, v)
        final = final_lr*(lr / base_lr if base_lr > 0 else 1)
        eta = lr*sqrt(1 - beta2**t) / (1 - beta1**t) / (sqrt(v_max if amsbound else v) + eps)
        p = p - clip(eta, final*(1 - 1 / (gamma*t + 1)), final*(1 + 1 / (gamma*t)))*m

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        final_lr (float | Tensor): default 0.1; needs final_lr >= 0.
        gamma (float | Tensor): default 0.001; needs 0 < gamma < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        amsbound (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.
        base_lr: one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Luo et al., ICLR 2019, arXiv:1902.09843.

    Example:
        >>> optimizer = optgen.AdaBound(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        final_lr: float | Tensor = 0.1,
        gamma: float | Tensor = 0.001,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsbound: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaHessian(Optimizer):
    """AdaHessian: Adam with the Hessian's diagonal in the second moment.

    `step(hess=...)` hands the diagonal in, such as Hutchinson's estimate.  average_conv_kernel is the paper's
    spatial averaging for the kernels of convolutions; its blocks of other shapes have to be averaged outside.
    Defaults: the authors' code.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        D = hess
        if average_conv_kernel and ndim == 4:
            D = mean(mean(abs(hess), axis=-1), axis=-2)
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*D**2
        v_hat = v / (1 - beta2**t)
        p = p - lr*(m / (1 - beta1**t)) / (v_hat**(hessian_power / 2) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.15; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 0.0001; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        hessian_power (float | Tensor): default 1.0; needs 0 <= hessian_power <= 1.
        average_conv_kernel (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_hessian_diag_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Inputs of step():
        hess: a tensor of each parameter's shape, as a mapping from parameters or a sequence.

    Reference:
        Yao et al., AAAI 2021, arXiv:2006.00719.

    Example:
        >>> optimizer = optgen.AdaHessian(model.parameters(), lr=0.15)
        >>> optimizer.step(hess=hess)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.15,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 0.0001,
        weight_decay: float | Tensor = 0.0,
        hessian_power: float | Tensor = 1.0,
        average_conv_kernel: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaMod(Optimizer):
    """AdaMod: Adam with each step size bounded by its average.

    Algorithm 1 of the paper.  pytorch_optimizer, as the authors' code, averages step sizes that hold the first
    moment's debiasing, and does not debias eps.  Defaults: the authors'.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        eta = lr / (sqrt(v / (1 - beta2**t)) + eps)
        s = beta3*s + (1 - beta3)*eta
        p = p - minimum(eta, s)*(m / (1 - beta1**t))

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        beta3 (float | Tensor): default 0.999; needs 0 <= beta3 < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_lr: s, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Ding et al., 2019, arXiv:1910.12249.

    Example:
        >>> optimizer = optgen.AdaMod(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        beta3: float | Tensor = 0.999,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaNorm(Optimizer):
    """AdaNorm: Adam with the norm of the gradient held up by its average.

    The paper's AdamNorm: the corrected gradient enters the first moment only.  pytorch_optimizer also divides
    eps by sqrt(1 - beta2**t) and adds 1e-15 inside the root.  Defaults: pytorch_optimizer's.

    Formula:
        beta1, beta2 = betas
        e = r*e + (1 - r)*norm(g)
        s = g*(e / norm(g)) if e > norm(g) and norm(g) > 0 else g
        m = beta1*m + (1 - beta1)*s
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        r (float | Tensor): default 0.95; needs 0 <= r < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_var: v, a value per element, in state_dtype or the parameter's dtype.
        exp_grad_norm: e, one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Dubey, Singh & Chaudhuri, WACV 2023, arXiv:2210.06364.

    Example:
        >>> optimizer = optgen.AdaNorm(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        r: float | Tensor = 0.95,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdaPNM(Optimizer):
    """AdaPNM: Adam with positive-negative momentum.

    Odd and even steps have an average each: the one of this step enters with weight 1 + beta3, that of the last
    with -beta3.  betas[2] is the paper's beta0.  Defaults: the authors' pnm_optim.
    pytorch_optimizer.AdaPNM debiases eps along with v; here and in the authors' code it is added after.

    Formula:
        beta1, beta2, beta3 = betas
        p = p*(1 - lr*weight_decay)
        now = t % 2 == 1
        m = beta1**2*(odd if now else even) + (1 - beta1**2)*g
        other = even if now else odd
        odd = m if now else odd
        even = even if now else m
        v = beta2*v + (1 - beta2)*g**2
        if amsgrad:
            v_max = maximum(v_max, v)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        d = ((1 + beta3)*m - beta3*other) / sqrt((1 + beta3)**2 + beta3**2)
        p = p - lr*(d / (1 - beta1**t)) / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor, float | Tensor]): coefficients of the running
            averages or sums; default (0.9, 0.999, 1.0); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        amsgrad (bool): divide by the largest second moment so far; default True.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: odd, a value per element, in state_dtype or the parameter's dtype.
        neg_exp_avg: even, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Xie et al., ICML 2021, arXiv:2103.17182.

    Example:
        >>> optimizer = optgen.AdaPNM(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 1.0),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = True,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adadelta(Optimizer):
    """Adadelta: a step in the units of the parameter.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        v = rho*v + (1 - rho)*g**2
        delta = sqrt(d + eps) / sqrt(v + eps)*g
        d = rho*d + (1 - rho)*delta**2
        p = p - lr*delta

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        rho (float | Tensor): default 0.9; needs 0 <= rho <= 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        square_avg: v, a value per element, in state_dtype or the parameter's dtype.
        acc_delta: d, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Zeiler, 2012, arXiv:1212.5701.

    Example:
        >>> optimizer = optgen.Adadelta(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float | Tensor = 0.9,
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adafactor(Optimizer):
    """Adafactor: second moments by row and column.

    The form, keys and defaults of torch.optim: tensors of two or more dimensions are factored over the last
    two, the others are not; the step is relative to the size of p, and smaller than 1/sqrt(t).
    eps[0] = None is 2**-23 for every dtype; torch takes the eps of p's dtype.  beta1 averages the
    whole step, as in Tensor2Tensor and fairseq; torch has no first moment.

    Formula:
        eps1 = 2**-23 if eps[0] is None else eps[0]
        alpha = maximum(eps[1], rms(p))*minimum(lr, 1/sqrt(t))
        p = p*(1 - lr*weight_decay)
        if ndim >= 2:
            row_var = lerp(row_var, mean(g**2, axis=-1), t**beta2_decay)
            col_var = lerp(col_var, mean(g**2, axis=-2), t**beta2_decay)
            v = row_var / maximum(mean(row_var, axis=-2), eps1)*col_var
        else:
            variance = lerp(variance, g**2, t**beta2_decay)
            v = variance
        x = g / sqrt(maximum(v, eps1**2))
        x = alpha / maximum(1, rms(x)/d)*x
        if beta1 is not None:
            m = beta1*m + (1 - beta1)*x
            x = m
        p = p - x

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        beta2_decay (float | Tensor): default -0.8; needs beta2_decay <= 0.
        eps (tuple[float | Tensor | None, float | Tensor]): default (None, 0.001); needs eps[0] is None
            or eps[0] >= 0, eps[1] >= 0.
        d (float | Tensor): default 1.0; needs d >= 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        beta1 (float | Tensor | None): default None; needs beta1 is None or 0 <= beta1 < 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        variance: a value per element, in state_dtype or the parameter's dtype.
        row_var: a value per row, float32, or float64 beside float64 parameters.
        col_var: a value per col, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Shazeer & Stern, ICML 2018, arXiv:1804.04235.

    Example:
        >>> optimizer = optgen.Adafactor(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta2_decay: float | Tensor = -0.8,
        eps: tuple[float | Tensor | None, float | Tensor] = (None, 0.001),
        d: float | Tensor = 1.0,
        weight_decay: float | Tensor = 0.0,
        beta1: float | Tensor | None = None,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adagrad(Optimizer):
    """Adagrad: a step size that shrinks with the sum of squared gradients.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        s = s + g**2
        p = p - lr / (1 + (t - 1)*lr_decay)*g / (sqrt(s) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        lr_decay (float | Tensor): default 0.0; needs lr_decay >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        initial_accumulator_value (float | Tensor): default 0.0; needs initial_accumulator_value >= 0.
        eps (float | Tensor): small number against division by 0; default 1e-10; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        sum: s, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Duchi, Hazan & Singer, JMLR 12, 2011.

    Example:
        >>> optimizer = optgen.Adagrad(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        lr_decay: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        initial_accumulator_value: float | Tensor = 0.0,
        eps: float | Tensor = 1e-10,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adai(Optimizer):
    """Adai: adaptive inertia, momentum by each element's second moment.

    The mean of the second moments is over all tensors.  decouple=True is AdaiW.  Defaults: the authors' code.
    pytorch_optimizer.Adai takes the mean to be at least eps.

    Formula:
        beta0, beta2 = betas
        if decouple:
            p = p*(1 - lr*weight_decay)
        elif weight_decay != 0:
            g = g + weight_decay*p
        v = beta2*v + (1 - beta2)*g**2
        v_hat = v / (1 - beta2**t)
        v_mean = mean(v_hat, over=all)
        mu = clip(1 - beta0*(v_hat / v_mean if v_mean > 0 else 0), 0, 1 - eps)
        m = mu*m + (1 - mu)*g
        product = product*mu
        p = p - lr*m / (1 - product)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.1, 0.99); needs betas[0] >= 0, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 0.001; needs 0 < eps < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        decouple (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        beta1_prod: product, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Xie et al., ICML 2022, arXiv:2006.15815.

    Example:
        >>> optimizer = optgen.Adai(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.1, 0.99),
        eps: float | Tensor = 0.001,
        weight_decay: float | Tensor = 0.0,
        decouple: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adam(Optimizer):
    """Adam: adaptive moment estimation.

    amsgrad: Reddi, Kale & Kumar, ICLR 2018.  decoupled_weight_decay makes it AdamW.

    Formula:
        beta1, beta2 = betas
        if decoupled_weight_decay:
            p = p*(1 - lr*weight_decay)
        elif weight_decay != 0:
            g = g + weight_decay*p
        m = lerp(m, g, 1 - beta1)
        v = beta2*v + (1 - beta2)*g**2
        if amsgrad:
            v_max = maximum(v_max, v)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        p = p - lr / (1 - beta1**t)*m / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        amsgrad (bool): divide by the largest second moment so far; default False.
        decoupled_weight_decay (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Kingma & Ba, ICLR 2015, arXiv:1412.6980.

    Example:
        >>> optimizer = optgen.Adam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamAtan2(Optimizer):
    """AdamAtan2: Adam without eps, by the arc tangent.

    The paper's update is a = b = 1.  These defaults are adam-atan2-pytorch's: a = 1.27 makes a step of Adam's
    size where |m| is sqrt(v).  Weight decay is AdamW's, scaled by lr; that package scales it by lr over its
    first value.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*a*atan2(m / (1 - beta1**t), b*sqrt(v / (1 - beta2**t)))

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        a (float | Tensor): default 1.27; needs a >= 0.
        b (float | Tensor): default 1.0; needs b > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Everett et al., ICML 2024, arXiv:2407.05872.

    Example:
        >>> optimizer = optgen.AdamAtan2(model.parameters(), lr=0.0001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        a: float | Tensor = 1.27,
        b: float | Tensor = 1.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamC(Optimizer):
    """AdamC: AdamW whose decay follows the square of lr.

    For the layers that a normalisation follows; the others keep AdamW's decay: give them a group of their own
    with normalized=False.  max_lr is the schedule's largest lr; None takes the largest so far.
    pytorch_optimizer.AdamC takes the lr it was made with, debiases eps along with v, and has False as the
    default of normalized; the other defaults are its own.

    Formula:
        beta1, beta2 = betas
        rate = lr
        if normalized and max_lr == None:
            peak = maximum(peak, lr)
            rate = lr**2 / peak if peak > 0 else 0
        elif normalized:
            rate = lr**2 / max_lr
        p = p*(1 - rate*weight_decay)
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        normalized (bool): default True.
        max_lr (float | Tensor | None): default None; needs max_lr == None or max_lr > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        peak: one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Defazio, 2025, arXiv:2506.02285.

    Example:
        >>> optimizer = optgen.AdamC(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        normalized: bool = True,
        max_lr: float | Tensor | None = None,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamMini(Optimizer):
    """AdamMini: AdamW with one second moment for each neuron.

    A block is an index of the first dimension, a neuron of a weight matrix, and the whole of a tensor of one
    dimension.  The paper's partition by attention head is not known from a tensor's shape.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta1)
        if ndim >= 2:
            v = beta2*v + (1 - beta2)*mean(g**2, axis=unit)
            second = v
        else:
            whole = beta2*whole + (1 - beta2)*mean(g**2)
            second = whole
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(second / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        m: a value per element, in state_dtype or the parameter's dtype.
        vmean: v, a value per unit, float32, or float64 beside float64 parameters.
        vmean_all: whole, one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Zhang et al., 2024, arXiv:2406.16793.

    Example:
        >>> optimizer = optgen.AdamMini(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamP(Optimizer):
    """AdamP: Adam without the part of the update that only changes the norm of scale-invariant weights.

    A tensor of two or more dimensions counts as scale-invariant where its gradient is nearly orthogonal to it,
    in each index of the first dimension or else as a whole; then the update loses its part along p, and p decays
    less.  Bias corrections, the place of eps and defaults are those of the authors' code.  The denominator of a
    cosine is at least eps/sqrt(n).  pytorch_optimizer adds eps before it debiases v.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        x = (beta1*m + (1 - beta1)*g if nesterov else m) / (sqrt(v / (1 - beta2**t)) + eps)
        decay = 1
        if ndim >= 2:
            cosine = abs(dot(g, p, axis=unit)) / maximum(norm(g, axis=unit)*rms(p, axis=unit), eps)
            by_unit = amax(cosine) < delta
            whole = abs(dot(g, p)) / maximum(norm(g)*rms(p), eps) < delta
            size = norm(p, axis=unit) if by_unit else norm(p)
            along = (dot(p, x, axis=unit) if by_unit else dot(p, x)) / (size + eps)**2
            x = x - along*p if by_unit or whole else x
            decay = wd_ratio if by_unit or whole else 1
        p = p*(1 - lr*weight_decay*decay)
        p = p - lr / (1 - beta1**t)*x

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        delta (float | Tensor): default 0.1; needs delta >= 0.
        wd_ratio (float | Tensor): default 0.1; needs wd_ratio >= 0.
        nesterov (bool): use Nesterov's momentum; default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Heo et al., ICLR 2021, arXiv:2006.08217.

    Example:
        >>> optimizer = optgen.AdamP(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        delta: float | Tensor = 0.1,
        wd_ratio: float | Tensor = 0.1,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamW(Optimizer):
    """AdamW: Adam with decoupled weight decay.

    amsgrad: Reddi, Kale & Kumar, ICLR 2018.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta1)
        v = beta2*v + (1 - beta2)*g**2
        if amsgrad:
            v_max = maximum(v_max, v)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        p = p - lr / (1 - beta1**t)*m / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.01; needs weight_decay >= 0.
        amsgrad (bool): divide by the largest second moment so far; default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.

    Example:
        >>> optimizer = optgen.AdamW(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AdamWScheduleFree(Optimizer):
    """AdamWScheduleFree: AdamW without a schedule.

    p is y, where gradients are taken, while training; `eval()` turns it into the average x, `train()` back.
    As in the schedulefree package x is not kept; weight_sum and lr_max count per tensor here, not per group.

    Formula:
        beta1, beta2 = betas
        gamma = lr*minimum(t / maximum(warmup_steps, 1), 1)
        lr_max = maximum(lr_max, gamma)
        weight = t**r*lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum != 0 else 0
        v = beta2*v + (1 - beta2)*g**2
        d = g / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay*p
        p = lerp(p, z, c)
        p = p - gamma*(1 - beta1*(1 - c))*d
        z = z - gamma*d

        def eval():
            p = lerp(p, z, 1 - 1 / betas[0])

        def train():
            p = lerp(p, z, 1 - betas[0])

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0025; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 < betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        warmup_steps (float | Tensor): default 0.0; needs warmup_steps >= 0.
        r (float | Tensor): default 0.0.
        weight_lr_power (float | Tensor): default 2.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        z: a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        weight_sum: one value per tensor, float32, or float64 beside float64 parameters.
        lr_max: one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Defazio et al., NeurIPS 2024, arXiv:2405.15682.

    Example:
        >>> optimizer = optgen.AdamWScheduleFree(model.parameters(), lr=0.0025)
        >>> optimizer.step()
        >>> optimizer.eval()  # before model.eval(), and optimizer.train() before training goes on
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        warmup_steps: float | Tensor = 0.0,
        r: float | Tensor = 0.0,
        weight_lr_power: float | Tensor = 2.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm.

    As in torch.optim eps joins the gradient inside the maximum; the paper has none.

    Formula:
        beta1, beta2 = betas
        if weight_decay != 0:
            g = g + weight_decay*p
        m = lerp(m, g, 1 - beta1)
        n = maximum(beta2*n, abs(g) + eps)
        p = p - lr / (1 - beta1**t)*m / n

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.002; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_inf: n, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Kingma & Ba, ICLR 2015, section 7.1, arXiv:1412.6980.

    Example:
        >>> optimizer = optgen.Adamax(model.parameters(), lr=0.002)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Adan(Optimizer):
    """Adan: adaptive Nesterov momentum.

    The authors' code, with its defaults: its betas are one minus the paper's, and the averages begin at zero
    and are debiased.  The decay is the paper's proximal step; no_prox makes it AdamW's.

    Formula:
        beta1, beta2, beta3 = betas
        d = 0 if t == 1 else g + last
        m = lerp(m, g, 1 - beta1)
        v = lerp(v, d, 1 - beta2)
        n = beta3*n + (1 - beta3)*(g + beta2*d)**2
        last = -g
        m_hat = m / (1 - beta1**t) + beta2*v / (1 - beta2**t)
        if no_prox:
            p = p*(1 - lr*weight_decay)
        p = p - lr*m_hat / (sqrt(n / (1 - beta3**t)) + eps)
        if not no_prox:
            p = p / (1 + lr*weight_decay)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor, float | Tensor]): coefficients of the running
            averages or sums; default (0.98, 0.92, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1, 0
            <= betas[2] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        no_prox (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_diff: v, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: n, a value per element, in state_dtype or the parameter's dtype.
        neg_pre_grad: last, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Xie et al., 2022, arXiv:2208.06677.

    Example:
        >>> optimizer = optgen.Adan(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.98, 0.92, 0.99),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AggMo(Optimizer):
    """AggMo: the mean of several momenta.

    betas are three, as in the paper's default.  The authors' code keeps the momenta in a dict, so its
    checkpoints do not load.  lr defaults to pytorch_optimizer's.

    Formula:
        for i in range(3):
            b[i] = betas[i]*b[i] + g
        p = p - lr*(b[0] + b[1] + b[2]) / 3

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor, float | Tensor]): coefficients of the running
            averages or sums; default (0.0, 0.9, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1, 0 <=
            betas[2] < 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer_0: b[0], a value per element, in state_dtype or the parameter's dtype.
        momentum_buffer_1: b[1], a value per element, in state_dtype or the parameter's dtype.
        momentum_buffer_2: b[2], a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Lucas, Sun, Zemel & Grosse, ICLR 2019, arXiv:1804.00325.

    Example:
        >>> optimizer = optgen.AggMo(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.0, 0.9, 0.99),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AliG(Optimizer):
    """AliG: SGD at the rate that would bring the loss to 0.

    The loss is `step(loss=...)` or the closure's result; the norm is of all tensors.  lr is the maximal rate,
    max_lr in the authors' code, and inf is none.  Momentum is Nesterov's.  There is no projection.
    Defaults: the authors' code, but lr, which is that of its example.  pytorch_optimizer's eps is 1e-6.

    Formula:
        rate = minimum(loss / (sum(g**2, over=all) + eps), lr)
        p = p - rate*g
        if momentum != 0:
            b = momentum*b - rate*g
            p = p + momentum*b

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs 0 <= momentum < 1.
        eps (float | Tensor): small number against division by 0; default 1e-05; needs eps > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: b, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Inputs of step():
        loss: one number; the closure's result where it is not given.

    Reference:
        Berrada et al., ICML 2020, arXiv:1906.05661.

    Example:
        >>> optimizer = optgen.AliG(model.parameters(), lr=0.1)
        >>> optimizer.step(closure)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float | Tensor = 0.0,
        eps: float | Tensor = 1e-05,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class AvaGrad(Optimizer):
    """AvaGrad: rates from the last step's second moment, with a mean square of 1.

    Algorithm 2 of the paper; the mean is over all tensors.  pytorch_optimizer.AvaGrad debiases both moments,
    takes the mean of the rates before, for each group, and does not move in the first step.
    Defaults: pytorch_optimizer's.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = beta1*m + (1 - beta1)*g
        eta = 1 / (sqrt(v) + eps)
        p = p - lr*eta / sqrt(mean(eta**2, over=all))*m
        v = beta2*v + (1 - beta2)*g**2

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 0.1; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Savarese et al., CVPR 2021, arXiv:1912.01823.

    Example:
        >>> optimizer = optgen.AvaGrad(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 0.1,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class CAME(Optimizer):
    """CAME: Adafactor whose first moment is scaled by how far it can be trusted.

    Algorithm 2 of the paper; tensors of two or more dimensions are factored over the last two.  As in the
    authors' code means stand for the paper's sums, tensors of one dimension have no confidence, and p decays
    by lr*weight_decay.  Keys and defaults are theirs; they have no default for lr, this one is from
    pytorch_optimizer.

    Formula:
        beta1, beta2, beta3 = betas
        p = p*(1 - lr*weight_decay)
        if ndim >= 2:
            r = beta2*r + (1 - beta2)*mean(g**2 + eps[0], axis=-1)
            c = beta2*c + (1 - beta2)*mean(g**2 + eps[0], axis=-2)
            x = g / (sqrt(r / mean(r, axis=-2))*sqrt(c))
        else:
            v = beta2*v + (1 - beta2)*(g**2 + eps[0])
            x = g / sqrt(v)
        x = x / maximum(1, rms(x)/clip_threshold)
        m = beta1*m + (1 - beta1)*x
        if ndim >= 2:
            R = beta3*R + (1 - beta3)*mean((x - m)**2 + eps[1], axis=-1)
            C = beta3*C + (1 - beta3)*mean((x - m)**2 + eps[1], axis=-2)
            p = p - lr*m / (sqrt(R / mean(R, axis=-2))*sqrt(C))
        else:
            p = p - lr*m

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0002; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor, float | Tensor]): coefficients of the running
            averages or sums; default (0.9, 0.999, 0.9999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1,
            0 <= betas[2] < 1.
        eps (tuple[float | Tensor, float | Tensor]): default (1e-30, 1e-16); needs eps[0] >= 0, eps[1]
            >= 0.
        clip_threshold (float | Tensor): default 1.0; needs clip_threshold > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq_row: r, a value per row, float32, or float64 beside float64 parameters.
        exp_avg_res_row: R, a value per row, float32, or float64 beside float64 parameters.
        exp_avg_sq_col: c, a value per col, float32, or float64 beside float64 parameters.
        exp_avg_res_col: C, a value per col, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Luo et al., ACL 2023, arXiv:2307.02047.

    Example:
        >>> optimizer = optgen.CAME(model.parameters(), lr=0.0002)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0002,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.9999),
        eps: tuple[float | Tensor, float | Tensor] = (1e-30, 1e-16),
        clip_threshold: float | Tensor = 1.0,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DAdaptAdam(Optimizer):
    """DAdaptAdam: Adam with D-adaptation.

    d is a lower bound on the distance to the solution, for all tensors together, and lr stays 1.  m holds
    gradients times their rates.  As in version 3 of the authors' code the inner product is weighted by v from
    before the step.  lr, betas and all else that d depends on must be the same in every group.
    Defaults: the authors' code, dadaptation.

    Formula:
        beta1, beta2 = betas
        b = sqrt(beta2)
        rate = d*lr*(sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else 1)
        if weight_decay != 0 and not decouple:
            g = g + weight_decay*p
        r = b*r + (1 - b)*rate*dot(g, s / (sqrt(v) + eps), over=all)
        m = beta1*m + (1 - beta1)*rate*g
        v = beta2*v + (1 - beta2)*g**2
        s = b*s + (1 - b)*rate*g
        if decouple:
            p = p*(1 - rate*weight_decay)
        p = p - m / (sqrt(v) + eps)
        s_norm = sum(abs(s), over=all)
        d_hat = r / ((1 - b)*s_norm) if s_norm > 0 else 0
        d = maximum(d, minimum(d_hat, d*growth_rate))

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        decouple (bool): default False.
        use_bias_correction (bool): default False.
        d0 (float | Tensor): default 1e-06; needs d0 > 0.
        growth_rate (float | Tensor): default inf; needs growth_rate >= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        s: a value per element, in state_dtype or the parameter's dtype.
        d: one value for all tensors, float64, in every parameter group.
        numerator_weighted: r, one value for all tensors, float64, in every parameter group.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Defazio & Mishchenko, ICML 2023, arXiv:2301.07733.

    Example:
        >>> optimizer = optgen.DAdaptAdam(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float | Tensor = 1e-06,
        growth_rate: float | Tensor = float("inf"),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DAdaptLion(Optimizer):
    """DAdaptLion: Lion with D-adaptation, from the authors of D-adaptation.

    Not in the paper but in version 3 of the authors' code.  d is one for all tensors, and lr stays 1.
    lr and betas must be the same in every group.  Defaults: pytorch_optimizer's.

    Formula:
        beta1, beta2 = betas
        b = sqrt(beta2)
        rate = d*lr
        c = sign(lerp(m, g, 1 - beta1))
        p = p*(1 - rate*weight_decay)
        p = p - rate*c
        m = beta2*m + (1 - beta2)*rate*g
        r = b*r + (1 - b)*rate*dot(c, s, over=all)
        s = b*s + (1 - b)*rate*c
        s_norm = sum(abs(s), over=all)
        d = maximum(d, r / ((1 - b)*s_norm) if s_norm > 0 else 0)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        d0 (float | Tensor): default 1e-06; needs d0 > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        s: a value per element, in state_dtype or the parameter's dtype.
        d: one value for all tensors, float64, in every parameter group.
        numerator_weighted: r, one value for all tensors, float64, in every parameter group.

    Reference:
        Defazio & Mishchenko, ICML 2023, arXiv:2301.07733.

    Example:
        >>> optimizer = optgen.DAdaptLion(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        weight_decay: float | Tensor = 0.0,
        d0: float | Tensor = 1e-06,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DAdaptSGD(Optimizer):
    """DAdaptSGD: SGD with D-adaptation.

    d is a lower bound on the distance to the solution, for all tensors together, and lr stays 1.  Momentum is
    an average of the points z = x0 - s.  g0_norm is that of the first gradient which is not 0.
    lr and growth_rate must be the same in every group.  For weight decay chain weight_decay before this.
    Defaults: pytorch_optimizer's.

    Formula:
        g0_norm = g0_norm if g0_norm > 0 else norm(g, over=all)
        rate = d*lr / g0_norm if g0_norm > 0 else 0
        r = r + rate*dot(g, s, over=all)
        s = s + rate*g
        s_norm = norm(s, over=all)
        d_hat = 2*r / s_norm if s_norm > 0 else 0
        d = maximum(d, minimum(d_hat, d*growth_rate))
        z = x0 - s
        p = lerp(p, z, 1 - momentum)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        d0 (float | Tensor): default 1e-06; needs d0 > 0.
        growth_rate (float | Tensor): default inf; needs growth_rate >= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        s: a value per element, in state_dtype or the parameter's dtype.
        x0: a value per element, in state_dtype or the parameter's dtype.
        d: one value for all tensors, float64, in every parameter group.
        numerator_weighted: r, one value for all tensors, float64, in every parameter group.
        g0_norm: one value for all tensors, float64, in every parameter group.

    Reference:
        Defazio & Mishchenko, ICML 2023, arXiv:2301.07733.

    Example:
        >>> optimizer = optgen.DAdaptSGD(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.9,
        d0: float | Tensor = 1e-06,
        growth_rate: float | Tensor = float("inf"),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Descent(Optimizer):
    """Descent: gradient descent.

    Optimisers.jl's Descent, and its default.

    Formula:
        p = p - lr*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Reference:
        Cauchy, Comptes rendus 25, 1847.

    Example:
        >>> optimizer = optgen.Descent(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DiffGrad(Optimizer):
    """DiffGrad: Adam slowed where the gradient has hardly changed.

    The gradient before the first is 0.  As in the paper eps joins the debiased sqrt(v); the authors' code adds
    it before debiasing.  Defaults: the authors'.

    Formula:
        beta1, beta2 = betas
        friction = 1 / (1 + exp(-abs(last - g)))
        last = g
        m = lerp(m, g, 1 - beta1)
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*friction*(m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        previous_grad: last, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Dubey et al., IEEE TNNLS 31, 2020, arXiv:1909.11015.

    Example:
        >>> optimizer = optgen.DiffGrad(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DoG(Optimizer):
    """DoG: distance over gradients, SGD without a rate.

    The distance and the sum of squares are of all tensors together; in the authors' code, of each group.
    The first distance is reps_rel*(1 + norm(p)).  To be used with averaging: chain ema after it.
    Defaults: the authors' code, formll/dog.

    Formula:
        g = g + weight_decay*p
        r = maximum(r, norm(p - x0, over=all)) if r > 0 else reps_rel*(1 + norm(p, over=all))
        G = G + sum(g**2, over=all)
        p = p - lr*r / sqrt(G)*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        reps_rel (float | Tensor): default 1e-06; needs reps_rel > 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        x0: a value per element, in state_dtype or the parameter's dtype.
        rbar: r, one value for all tensors, float64, in every parameter group.
        G: one value for all tensors, float64, in every parameter group.

    Reference:
        Ivgi, Hinder & Carmon, ICML 2023, arXiv:2302.12022.

    Example:
        >>> optimizer = optgen.DoG(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        reps_rel: float | Tensor = 1e-06,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class DoWG(Optimizer):
    """DoWG: distance over weighted gradients.

    For all tensors together.  As in the authors' code eps is both the first squared distance and what is added
    to the denominator, and there is no projection.  Default: the authors' code, rka97/dowg.

    Formula:
        r2 = maximum(r2, sum((p - x0)**2, over=all))
        v = v + r2*sum(g**2, over=all)
        p = p - lr*r2 / (sqrt(v) + eps)*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        eps (float | Tensor): small number against division by 0; default 0.0001; needs eps > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        x0: a value per element, in state_dtype or the parameter's dtype.
        rt2: r2, one value for all tensors, float64, in every parameter group.
        vt: v, one value for all tensors, float64, in every parameter group.

    Reference:
        Khaled, Mishchenko & Jin, NeurIPS 2023, arXiv:2305.16284.

    Example:
        >>> optimizer = optgen.DoWG(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        eps: float | Tensor = 0.0001,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class EMAMomentum(Optimizer):
    """EMAMomentum: SGD with the average of its gradients.

    torch.optim.SGD with dampening = momentum is the same from the second step on; its first step is whole.

    Formula:
        v = momentum*v + (1 - momentum)*g
        p = p - lr*v

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        The SGD of phonism/genesis, code of 2025.

    Example:
        >>> optimizer = optgen.EMAMomentum(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class FTRL(Optimizer):
    """FTRL: follow the regularised leader, per coordinate.

    Algorithm 1, FTRL-Proximal: an element is exactly 0 unless |z| has outgrown lambda_1.  The paper starts at
    p = 0; another start counts through z, and an element whose first gradient is 0 becomes 0.
    Defaults, and the names of the penalties: pytorch_optimizer.FTRL's.

    Formula:
        sigma = (sqrt(n + g**2) - sqrt(n)) / lr
        z = z + g - sigma*p
        n = n + g**2
        p = where(abs(z) <= lambda_1, 0, (sign(z)*lambda_1 - z) / ((beta + sqrt(n)) / lr + lambda_2))

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr > 0.
        beta (float | Tensor): default 0.0; needs beta >= 0.
        lambda_1 (float | Tensor): default 0.0; needs lambda_1 >= 0.
        lambda_2 (float | Tensor): default 0.0; needs lambda_2 >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        z: a value per element, in state_dtype or the parameter's dtype.
        n: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        McMahan et al., KDD 2013.

    Example:
        >>> optimizer = optgen.FTRL(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        beta: float | Tensor = 0.0,
        lambda_1: float | Tensor = 0.0,
        lambda_2: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Fromage(Optimizer):
    """Fromage: Frobenius-matched gradient descent.

    Each tensor is a layer.  Where a norm is 0 the gradient is taken as it is, as in the authors' code.

    Formula:
        ratio = norm(p) / norm(g) if norm(p) > 0 and norm(g) > 0 else 1
        p = p - lr*ratio*g
        p = p / sqrt(1 + lr**2)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Reference:
        Bernstein et al., NeurIPS 2020, arXiv:2002.03432.

    Example:
        >>> optimizer = optgen.Fromage(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class GradientDescent(Optimizer):
    """GradientDescent: Gen.jl's, with a step that decays as 1/t.

    lr is Gen's step_size_init, and beta its step_size_beta, after which number of steps the step is about half.
    Gen ascends (maximize=True) and counts every call, where t counts this parameter's own steps.  It has no
    defaults.

    Formula:
        p = p - lr*(beta + 1) / (beta + t)*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        beta (float | Tensor): default 100.0; needs beta >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Reference:
        Robbins & Monro, Ann. Math. Stat. 22, 1951.

    Example:
        >>> optimizer = optgen.GradientDescent(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        beta: float | Tensor = 100.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Grams(Optimizer):
    """Grams: the size of Adam's update, the sign of the gradient.

    Weight decay is decoupled.  Defaults: pytorch_optimizer.Grams's.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        d = (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
        p = p - lr*sign(g)*abs(d)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Cao, Li & Song, 2024, arXiv:2412.17107.

    Example:
        >>> optimizer = optgen.Grams(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Gravity(Optimizer):
    """Gravity: momentum of gradients damped where they are large.

    v starts at 0: the paper draws it from N(0, (alpha/lr)**2), and the language has no random numbers yet.
    t counts from 1, as in the authors' PyTorch code; their Keras code counts from 0.  Defaults: the authors'.

    Formula:
        zeta = g / (1 + (g*amax(abs(g)))**2)
        beta_t = (beta*t + 1) / (t + 2)
        v = beta_t*v + (1 - beta_t)*zeta
        p = p - lr*v

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        beta (float | Tensor): default 0.9; needs 0 <= beta <= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        v: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Bahrami & Pouriyan Zadeh, 2021, arXiv:2101.09192.

    Example:
        >>> optimizer = optgen.Gravity(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        beta: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class HeavyBall(Optimizer):
    """HeavyBall: gradient descent with inertia, as first written.

    The inertia is the last step taken, p - prior, so it holds the old lr: with a changing lr it is not
    torch.optim.SGD, with a constant one it is.

    Formula:
        step = lr*g - beta*(p - prior)
        prior = p
        p = p - step

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        beta (float | Tensor): default 0.9; needs 0 <= beta < 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        prior: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Polyak, USSR Comput. Math. 4(5), 1964.

    Example:
        >>> optimizer = optgen.HeavyBall(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        beta: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class LAMB(Optimizer):
    """LAMB: layer-wise adaptive moments for large batches.

    Algorithm 2 of the paper: both moments are debiased, the decay is part of the update, phi(x) = x.
    Each tensor is a layer, and is adapted whether it decays or not.  The ratio is 1 where a norm is 0.
    There is no clipping by the global norm, which NVIDIA's FusedLAMB adds.  Defaults: FusedLAMB's.
    pytorch_optimizer's Lamb leaves v as it is, and counts the norm of p as 10 at most.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        r = m_hat / (sqrt(v_hat) + eps) + weight_decay*p
        ratio = norm(p) / norm(r) if norm(p) > 0 and norm(r) > 0 else 1
        p = p - lr*ratio*r

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.01; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        You et al., ICLR 2020, arXiv:1904.00962.

    Example:
        >>> optimizer = optgen.LAMB(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.01,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class LARS(Optimizer):
    """LARS: layer-wise adaptive rate scaling for large batches.

    As in the paper's Algorithm 1 the velocity holds lr, and each tensor is a layer and is adapted, of whatever
    shape; pytorch_optimizer keeps lr outside and leaves vectors alone.  The ratio is 1 where a norm is 0.
    The paper's polynomial decay of lr is left to a scheduler.  Defaults: timm's, with the paper's momentum.

    Formula:
        scale = norm(g) + weight_decay*norm(p)
        ratio = trust_coefficient*norm(p) / scale if norm(p) > 0 and scale > 0 else 1
        v = momentum*v + lr*ratio*(g + weight_decay*p)
        p = p - v

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        trust_coefficient (float | Tensor): default 0.001; needs trust_coefficient > 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        v: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        You, Gitman & Ginsburg, 2017, arXiv:1708.03888.

    Example:
        >>> optimizer = optgen.LARS(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        trust_coefficient: float | Tensor = 0.001,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class LDoG(Optimizer):
    """LDoG: layer-wise DoG, each tensor by itself.

    The first distance is reps_rel*(1 + norm(p)).  To be used with averaging: chain ema after it.
    Defaults: the authors' code, formll/dog.

    Formula:
        g = g + weight_decay*p
        r = maximum(r, norm(p - x0)) if t > 1 else reps_rel*(1 + norm(p))
        G = G + sum(g**2)
        p = p - lr*r / sqrt(G)*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        reps_rel (float | Tensor): default 1e-06; needs reps_rel > 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        x0: a value per element, in state_dtype or the parameter's dtype.
        rbar: r, one value per tensor, float32, or float64 beside float64 parameters.
        G: one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Ivgi, Hinder & Carmon, ICML 2023, arXiv:2302.12022.

    Example:
        >>> optimizer = optgen.LDoG(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        reps_rel: float | Tensor = 1e-06,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class LaProp(Optimizer):
    """LaProp: momentum of gradients that are already normalized.

    The paper's update.  The authors' code keeps lr inside the momentum, so m is not its exp_avg.  The decay is
    decoupled, and scaled by lr, which theirs is not.  Defaults: the authors'.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        n = beta2*n + (1 - beta2)*g**2
        m = beta1*m + (1 - beta1)*g / (sqrt(n / (1 - beta2**t)) + eps)
        p = p - lr*m / (1 - beta1**t)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0004; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-15; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        m: a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: n, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Ziyin, Wang & Ueda, 2020, arXiv:2002.04839.

    Example:
        >>> optimizer = optgen.LaProp(model.parameters(), lr=0.0004)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0004,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-15,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Lion(Optimizer):
    """Lion: evolved sign momentum.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        c = beta1*m + (1 - beta1)*g
        m = beta2*m + (1 - beta2)*g
        p = p - lr*sign(c)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Chen et al., NeurIPS 2023, arXiv:2302.06675.

    Example:
        >>> optimizer = optgen.Lion(model.parameters(), lr=0.0001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class MADGRAD(Optimizer):
    """MADGRAD: momentumized, adaptive dual averaging.

    The steps count per parameter, not per optimizer.  The authors' code adds eps to lr, which the paper does
    not.  Defaults: the authors'.

    Formula:
        lamb = lr*sqrt(t)
        s = s + lamb*g
        v = v + lamb*g**2
        z = x0 - s / (v**(1/3) + eps)
        p = lerp(p, z, 1 - momentum)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        s: a value per element, in state_dtype or the parameter's dtype.
        grad_sum_sq: v, a value per element, in state_dtype or the parameter's dtype.
        x0: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Defazio & Jelassi, 2021, arXiv:2101.11075.

    Example:
        >>> optimizer = optgen.MADGRAD(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float | Tensor = 0.9,
        eps: float | Tensor = 1e-06,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class MARS(Optimizer):
    """MARS: AdamW on a variance-reduced gradient, MARS-AdamW.

    The approximate form: the correction takes the last step's gradient, and in the first step 0, in place of
    this batch's at the last parameters.  Each tensor's c is cut to a norm of 1.
    Every tensor is treated alike, as with optimize_1d=True in the authors' code, whose defaults the others are.
    pytorch_optimizer.MARS debiases eps along with v; here and in the authors' code it is added after.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        c = g + gamma*beta1 / (1 - beta1)*(g - last)
        last = g
        c = c / maximum(norm(c), 1)
        m = beta1*m + (1 - beta1)*c
        v = beta2*v + (1 - beta2)*c**2
        if amsgrad:
            v_max = maximum(v_max, v)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.003; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.95, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        amsgrad (bool): divide by the largest second moment so far; default False.
        gamma (float | Tensor): default 0.025; needs gamma >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.
        last_grad: last, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Yuan et al., ICML 2025, arXiv:2411.10438.

    Example:
        >>> optimizer = optgen.MARS(model.parameters(), lr=0.003)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.003,
        betas: tuple[float | Tensor, float | Tensor] = (0.95, 0.99),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        gamma: float | Tensor = 0.025,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class MoMo(Optimizer):
    """MoMo: momentum SGD that takes its rate from the loss.

    The loss of the batch is `step(loss=...)` or the closure's result, and lr a bound on the rate.  lb is a
    lower bound on the loss; the estimation of one (Section 4 of the paper, use_fstar) is left out.
    Averages start at the first gradient and loss, or at 0 with bias_correction.  Defaults: the authors' code.

    Formula:
        rho = 1 - beta**t if bias_correction else 1
        w = 1 - beta if bias_correction or t > 1 else 1
        f = (1 - w)*f + w*loss
        gamma = (1 - w)*gamma + w*dot(g, p, over=all)
        d = (1 - w)*d + w*g
        c = 1 + lr*weight_decay
        h = c*(f - rho*lb - gamma) + dot(d, p, over=all)
        d2 = sum(d**2, over=all)
        tau = minimum(lr / rho, maximum(h, 0) / d2) if d2 > 0 else 0
        p = (p - tau*d) / c

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        beta (float | Tensor): default 0.9; needs 0 <= beta < 1.
        lb (float | Tensor): default 0.0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        bias_correction (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        grad_avg: d, a value per element, in state_dtype or the parameter's dtype.
        loss_avg: f, one value for all tensors, float64, in every parameter group.
        grad_dot_w: gamma, one value for all tensors, float64, in every parameter group.
        What the options or a tensor's shape leave unused is not kept.

    Inputs of step():
        loss: one number; the closure's result where it is not given.

    Reference:
        Schaipp et al., ICML 2024, arXiv:2305.07583.

    Example:
        >>> optimizer = optgen.MoMo(model.parameters(), lr=1.0)
        >>> optimizer.step(closure)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        beta: float | Tensor = 0.9,
        lb: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        bias_correction: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Momentum(Optimizer):
    """Momentum: the heavy ball.

    Optimisers.jl's Momentum, and its defaults.  lr scales what enters b, so that a new lr leaves b as it is;
    in torch.optim.SGD it scales what leaves the buffer.  At a constant lr the two are the same.

    Formula:
        b = momentum*b + lr*g
        p = p - b

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs momentum >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        velocity: b, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Polyak, USSR Comput. Math. Math. Phys. 4(5), 1964.

    Example:
        >>> optimizer = optgen.Momentum(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class NAdam(Optimizer):
    """NAdam: Adam with Nesterov momentum.

    mu, the momentum, grows to beta1; its constants 0.5 and 0.96 are torch.optim's.

    Formula:
        beta1, beta2 = betas
        if decoupled_weight_decay:
            p = p*(1 - lr*weight_decay)
        elif weight_decay != 0:
            g = g + weight_decay*p
        mu = beta1*(1 - 0.5*0.96**(t*momentum_decay))
        mu_next = beta1*(1 - 0.5*0.96**((t + 1)*momentum_decay))
        mu_product = mu_product*mu
        m = lerp(m, g, 1 - beta1)
        v = beta2*v + (1 - beta2)*g**2
        m_hat = mu_next / (1 - mu_product*mu_next)*m + (1 - mu) / (1 - mu_product)*g
        p = p - lr*m_hat / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.002; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        momentum_decay (float | Tensor): default 0.004; needs momentum_decay >= 0.
        decoupled_weight_decay (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        mu_product: one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Dozat, ICLR 2016 workshop, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Example:
        >>> optimizer = optgen.NAdam(model.parameters(), lr=0.002)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.002,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        momentum_decay: float | Tensor = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Nesterov(Optimizer):
    """Nesterov: accelerated gradient.

    Optimisers.jl's Nesterov, and its defaults; b is the velocity downhill.  lr scales what enters b, so that a
    new lr leaves b as it is; at a constant lr this is torch.optim.SGD with nesterov=True.

    Formula:
        b = momentum*b - lr*g
        p = p - (lr*g - momentum*b)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs momentum >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        velocity: b, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Nesterov, Soviet Math. Dokl. 27, 1983.

    Example:
        >>> optimizer = optgen.Nesterov(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class NoisySGD(Optimizer):
    """NoisySGD: SGD with annealed Gaussian noise added to the gradient.

    The variance of the noise is eta/t**gamma.  Defaults: optax's noisy_sgd, which needs a learning rate.

    Formula:
        p = p - lr*(g + sqrt(eta / t**gamma)*normal())

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        eta (float | Tensor): default 0.01; needs eta >= 0.
        gamma (float | Tensor): default 0.55; needs gamma >= 0.
        seed (float | Tensor): seed of the random numbers; default 0.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Reference:
        Neelakantan et al., 2015, arXiv:1511.06807.

    Example:
        >>> optimizer = optgen.NoisySGD(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        eta: float | Tensor = 0.01,
        gamma: float | Tensor = 0.55,
        seed: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class NovoGrad(Optimizer):
    """NovoGrad: gradients normalised by layer-wise second moments.

    Algorithm 1 of the paper: v starts as the first squared norm, nothing is debiased.  Defaults: those of
    pytorch_optimizer.

    Formula:
        beta1, beta2 = betas
        v = sum(g**2) if t == 1 else beta2*v + (1 - beta2)*sum(g**2)
        m = beta1*m + (g / (sqrt(v) + eps) + weight_decay*p)
        p = p - lr*m

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.95, 0.98); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        moments: m, a value per element, in state_dtype or the parameter's dtype.
        grads_ema: v, one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Ginsburg et al., 2019, arXiv:1905.11286.

    Example:
        >>> optimizer = optgen.NovoGrad(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.95, 0.98),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OAdam(Optimizer):
    """OAdam: optimistic Adam.

    Each step takes twice the update and gives the one before it back.  Optimisers.jl's OAdam, and its
    defaults: lr is part of the update that it keeps, so that a new lr leaves what is given back as it was.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        d = lr*(m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
        p = p - (2*d - last)
        last = d

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.5, 0.9); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        prev: last, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Daskalakis et al., ICLR 2018, arXiv:1711.00141.

    Example:
        >>> optimizer = optgen.OAdam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.5, 0.9),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersAdaBelief(Optimizer):
    """OptimisersAdaBelief: Optimisers.jl's AdaBelief.

    eps is added to s in every step, and so gathers there, and to its root as well, as in the paper's
    Algorithm 2.  Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        s = beta2*s + (1 - beta2)*(g - m)**2 + eps
        m_hat = m / (1 - beta1**t)
        s_hat = s / (1 - beta2**t)
        p = p - lr*m_hat / (sqrt(s_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-16; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_var: s, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Zhuang et al., NeurIPS 2020, arXiv:2010.07468.

    Example:
        >>> optimizer = optgen.OptimisersAdaBelief(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-16,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersAdaGrad(Optimizer):
    """OptimisersAdaGrad: Optimisers.jl's AdaGrad.

    The sum of squares starts at eps, where torch.optim's and the paper's start at 0.  Defaults: Optimisers.jl's.

    Formula:
        s = s + g**2
        p = p - lr*g / (sqrt(s) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        sum: s, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Duchi, Hazan & Singer, JMLR 12, 2011.

    Example:
        >>> optimizer = optgen.OptimisersAdaGrad(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersAdaMax(Optimizer):
    """OptimisersAdaMax: Optimisers.jl's AdaMax.

    eps is added to the norm, where torch.optim has it inside the maximum; the paper has none.
    Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        n = maximum(beta2*n, abs(g))
        p = p - lr / (1 - beta1**t)*m / (n + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_inf: n, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Kingma & Ba, ICLR 2015, section 7.1, arXiv:1412.6980.

    Example:
        >>> optimizer = optgen.OptimisersAdaMax(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersAdamW(Optimizer):
    """OptimisersAdamW: Optimisers.jl's AdamW.

    couple=False: the decay is not scaled by lr, the paper's Algorithm 2 with its schedule at 1.  True, the
    default, is torch.optim.AdamW with other defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - (lr*weight_decay if couple else weight_decay))
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        p = p - lr*(m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        couple (bool): default True.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.

    Example:
        >>> optimizer = optgen.OptimisersAdamW(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        weight_decay: float | Tensor = 0.0,
        eps: float | Tensor = 1e-08,
        couple: bool = True,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersLion(Optimizer):
    """OptimisersLion: Optimisers.jl's Lion, as it is coded.

    The weights are swapped: m takes beta2 of the gradient, where the paper's takes 1 - beta2, and so keeps
    almost nothing of the past.  `lion` is the paper's.  Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta2*g + (1 - beta2)*m
        p = p - lr*sign((beta2 - beta1)*g + beta1*m)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] <= 1, 0 <= betas[1] <= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Chen et al., NeurIPS 2023, arXiv:2302.06675.

    Example:
        >>> optimizer = optgen.OptimisersLion(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersNAdam(Optimizer):
    """OptimisersNAdam: Optimisers.jl's NAdam.

    The momentum is constant, where torch.optim's follows a schedule, and v is scaled by beta2 once more, as in
    the paper.  Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        m_hat = beta1*m / (1 - beta1**(t + 1)) + (1 - beta1)*g / (1 - beta1**t)
        v_hat = beta2*v / (1 - beta2**t)
        p = p - lr*m_hat / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Dozat, ICLR 2016 workshop, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.

    Example:
        >>> optimizer = optgen.OptimisersNAdam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersRAdam(Optimizer):
    """OptimisersRAdam: Optimisers.jl's RAdam.

    The rectified step begins at rho > 4, as in the paper, where torch.optim waits for rho > 5; eps joins
    sqrt(v) after its bias correction.  Defaults: Optimisers.jl's.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2*t*beta2**t / (1 - beta2**t)
        r = sqrt((rho - 4)*(rho - 2)*rho_inf / ((rho_inf - 4)*(rho_inf - 2)*rho))
        p = p - lr*m_hat*(r / (sqrt(v_hat) + eps) if rho > 4 else 1)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Liu et al., ICLR 2020, arXiv:1908.03265.

    Example:
        >>> optimizer = optgen.OptimisersRAdam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersRMSProp(Optimizer):
    """OptimisersRMSProp: Optimisers.jl's RMSProp.

    centred: the standard deviation in place of the root mean square, Graves, 2013, arXiv:1308.0850.
    A variance that rounding made negative counts as 0: Optimisers.jl raises an error there, and torch.optim
    gives NaN.  Defaults: Optimisers.jl's; alpha is its rho.

    Formula:
        v = alpha*v + (1 - alpha)*g**2
        if centred:
            g_avg = alpha*g_avg + (1 - alpha)*g
        variance = maximum(v - g_avg**2, 0) if centred else v
        p = p - lr*g / (sqrt(variance) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        alpha (float | Tensor): default 0.9; needs 0 <= alpha < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        centred (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        square_avg: v, a value per element, in state_dtype or the parameter's dtype.
        grad_avg: g_avg, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Tieleman & Hinton, Coursera lecture 6.5, 2012.

    Example:
        >>> optimizer = optgen.OptimisersRMSProp(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        alpha: float | Tensor = 0.9,
        eps: float | Tensor = 1e-08,
        centred: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class OptimisersRprop(Optimizer):
    """OptimisersRprop: Optimisers.jl's Rprop.

    torch.optim's with other bounds: a step size is bounded only when it changes, so an lr outside the bounds
    stays until the sign of the gradient repeats or turns.  Default lr: Optimisers.jl's.

    Formula:
        shrink, grow = etas
        smallest, largest = step_sizes
        turn = g*last
        grown = minimum(step_size*grow, largest)
        shrunk = maximum(step_size*shrink, smallest)
        step_size = grown if turn > 0 else shrunk if turn < 0 else step_size
        last = 0 if turn < 0 else g
        p = p - sign(last)*step_size

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        etas (tuple[float | Tensor, float | Tensor]): default (0.5, 1.2); needs 0 < etas[0] < 1 <
            etas[1].
        step_sizes (tuple[float | Tensor, float | Tensor]): default (1e-06, 50.0); needs 0 <=
            step_sizes[0] <= step_sizes[1].
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        prev: last, a value per element, in state_dtype or the parameter's dtype.
        step_size: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Riedmiller & Braun, IEEE ICNN 1993.

    Example:
        >>> optimizer = optgen.OptimisersRprop(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        etas: tuple[float | Tensor, float | Tensor] = (0.5, 1.2),
        step_sizes: tuple[float | Tensor, float | Tensor] = (1e-06, 50.0),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class PID(Optimizer):
    """PID: gradient descent as a proportional, integral and derivative controller.

    pytorch_optimizer's form and defaults, but for momentum: its 0 means plain SGD there.  The authors' code
    never stores the last gradient, so that its derivative term is one more sum of gradients.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        change = 0 if t == 1 else g - last
        last = g
        i = momentum*i + (1 - dampening)*g
        d = momentum*d + (1 - momentum)*change
        p = p - lr*(g + integral*i + derivative*d)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        dampening (float | Tensor): default 0.0; needs 0 <= dampening <= 1.
        integral (float | Tensor): default 5.0.
        derivative (float | Tensor): default 10.0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        grad_buffer: last, a value per element, in state_dtype or the parameter's dtype.
        i_buffer: i, a value per element, in state_dtype or the parameter's dtype.
        d_buffer: d, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        An et al., CVPR 2018.

    Example:
        >>> optimizer = optgen.PID(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        dampening: float | Tensor = 0.0,
        integral: float | Tensor = 5.0,
        derivative: float | Tensor = 10.0,
        weight_decay: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class PSGLD(Optimizer):
    """PSGLD: SGLD preconditioned as in RMSprop.

    The loss is the mean over the data of the negative logarithm of the posterior, and num_data their number.
    As in the paper's experiments the term Gamma, the preconditioner's derivative, is left out.
    temperature scales the noise's variance: 1 samples the posterior, 0 descends.  eps is the paper's lambda.

    Formula:
        v = alpha*v + (1 - alpha)*g**2
        G = 1 / (eps + sqrt(v))
        p = p - lr / 2*num_data*G*g + sqrt(lr*temperature*G)*normal()

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        alpha (float | Tensor): default 0.99; needs 0 <= alpha < 1.
        eps (float | Tensor): small number against division by 0; default 1e-05; needs eps > 0.
        num_data (float | Tensor): default 1.0; needs num_data > 0.
        temperature (float | Tensor): default 1.0; needs temperature >= 0.
        seed (float | Tensor): seed of the random numbers; default 0.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        square_avg: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Li et al., AAAI 2016, arXiv:1512.07666.

    Example:
        >>> optimizer = optgen.PSGLD(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        alpha: float | Tensor = 0.99,
        eps: float | Tensor = 1e-05,
        num_data: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        seed: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Padam(Optimizer):
    """Padam: AMSGrad with a smaller power of its second moment.

    Algorithm 1 of the paper: nothing is debiased and v_max only grows; pytorch_optimizer debiases and takes no
    maximum.  eps is the authors' code's, the paper has none; partial = 1/8 is the paper's, 1/2 is AMSGrad.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        v_max = maximum(v_max, v)
        p = p - lr*m / (sqrt(v_max) + eps)**(2*partial)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        partial (float | Tensor): default 0.125; needs 0 < partial <= 0.5.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        max_exp_avg_sq: v_max, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Chen et al., IJCAI 2020, arXiv:1806.06763.

    Example:
        >>> optimizer = optgen.Padam(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        partial: float | Tensor = 0.125,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class PolyakSGD(Optimizer):
    """PolyakSGD: SGD with a stochastic Polyak step.

    SPS_max: lr is its bound, f_min the smallest loss of a batch.  The loss is `step(loss=...)` or the closure's
    result; the norm is of all tensors.  At a loss below f_min nothing moves.  c = 1/2 is the paper's.

    Formula:
        g2 = sum(g**2, over=all)
        rate = minimum(maximum(loss - f_min, 0) / (c*g2), lr) if g2 > 0 else 0
        p = p - rate*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        c (float | Tensor): default 0.5; needs c > 0.
        f_min (float | Tensor): default 0.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Inputs of step():
        loss: one number; the closure's result where it is not given.

    Reference:
        Loizou et al., AISTATS 2021, arXiv:2002.10542.

    Example:
        >>> optimizer = optgen.PolyakSGD(model.parameters(), lr=1.0)
        >>> optimizer.step(closure)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        c: float | Tensor = 0.5,
        f_min: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Prodigy(Optimizer):
    """Prodigy: Adam that finds its own rate.

    d estimates the distance to the solution, for all tensors together; lr stays 1 and d_coef is what to tune.
    As in the paper eps is scaled by the d that the step is made with, in prodigyopt.Prodigy by the next one.
    lr, betas and all else that d depends on must be the same in every group.  Defaults: prodigyopt's.

    Formula:
        beta1, beta2 = betas
        b3 = sqrt(beta2) if beta3 is None else beta3
        rate = d*lr*(sqrt(1 - beta2**t) / (1 - beta1**t) if use_bias_correction else 1)
        if weight_decay != 0 and not decouple:
            g = g + weight_decay*p
        d_numerator = b3*d_numerator + d / d0*rate*dot(g, p0 - p, over=all)
        m = beta1*m + (1 - beta1)*d*g
        v = beta2*v + (1 - beta2)*(d*g)**2
        s = b3*s + d / d0*(d if safeguard_warmup else rate)*g
        if decouple:
            p = p*(1 - rate*weight_decay)
        p = p - rate*m / (sqrt(v) + d*eps)
        s_norm = sum(abs(s), over=all)
        d_hat = d_coef*d_numerator / s_norm if s_norm > 0 else 0
        d_max = maximum(d_max, d_hat)
        d = minimum(d_max, maximum(d, d_hat if d == d0 else d)*growth_rate)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        beta3 (float | Tensor | None): default None.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        decouple (bool): default True.
        use_bias_correction (bool): default False.
        safeguard_warmup (bool): default False.
        d0 (float | Tensor): default 1e-06; needs d0 > 0.
        d_coef (float | Tensor): default 1.0; needs d_coef > 0.
        growth_rate (float | Tensor): default inf; needs growth_rate >= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        s: a value per element, in state_dtype or the parameter's dtype.
        p0: a value per element, in state_dtype or the parameter's dtype.
        d: one value for all tensors, float64, in every parameter group.
        d_max: one value for all tensors, float64, in every parameter group.
        d_numerator: one value for all tensors, float64, in every parameter group.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Mishchenko & Defazio, ICML 2024, arXiv:2306.06101.

    Example:
        >>> optimizer = optgen.Prodigy(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        beta3: float | Tensor | None = None,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float | Tensor = 1e-06,
        d_coef: float | Tensor = 1.0,
        growth_rate: float | Tensor = float("inf"),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class QHAdam(Optimizer):
    """QHAdam: Adam with quasi-hyperbolic terms.

    nus weigh the two averages against the gradient and its square; with (1, 1) it is Adam.  As in the authors'
    qhoptim, whose defaults these are, m and v are kept debiased.

    Formula:
        beta1, beta2 = betas
        nu1, nu2 = nus
        m = lerp(m, g, (1 - beta1) / (1 - beta1**t))
        v = lerp(v, g**2, (1 - beta2) / (1 - beta2**t))
        p = p - lr*((1 - nu1)*g + nu1*m) / (sqrt((1 - nu2)*g**2 + nu2*v) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        nus (tuple[float | Tensor, float | Tensor]): default (1.0, 1.0).
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Ma & Yarats, ICLR 2019, arXiv:1810.06801.

    Example:
        >>> optimizer = optgen.QHAdam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        nus: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class QHM(Optimizer):
    """QHM: quasi-hyperbolic momentum, a mean of gradient and momentum.

    momentum is the paper's beta.  The momentum is dampened, so lr is larger than SGD's.  Defaults: the example
    of the authors' qhoptim, which has none.

    Formula:
        m = lerp(m, g, 1 - momentum)
        p = p - lr*((1 - nu)*g + nu*m)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.999; needs 0 <= momentum < 1.
        nu (float | Tensor): default 0.7.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: m, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Ma & Yarats, ICLR 2019, arXiv:1810.06801.

    Example:
        >>> optimizer = optgen.QHM(model.parameters(), lr=1.0)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.999,
        nu: float | Tensor = 0.7,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RAdam(Optimizer):
    """RAdam: Adam with a rectified adaptive learning rate.

    As in torch.optim the rectified step begins at rho > 5 (the paper: 4), and eps joins sqrt(v) before
    its bias correction.

    Formula:
        beta1, beta2 = betas
        if decoupled_weight_decay:
            p = p*(1 - lr*weight_decay)
        elif weight_decay != 0:
            g = g + weight_decay*p
        m = lerp(m, g, 1 - beta1)
        v = beta2*v + (1 - beta2)*g**2
        m_hat = m / (1 - beta1**t)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2*t*beta2**t / (1 - beta2**t)
        r = sqrt((rho - 4)*(rho - 2)*rho_inf / ((rho_inf - 4)*(rho_inf - 2)*rho))
        adaptive = sqrt(1 - beta2**t) / (sqrt(v) + eps)
        p = p - lr*m_hat*(r*adaptive if rho > 5 else 1)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        decoupled_weight_decay (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Liu et al., ICLR 2020, arXiv:1908.03265.

    Example:
        >>> optimizer = optgen.RAdam(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RAdamScheduleFree(Optimizer):
    """RAdamScheduleFree: RAdam without a schedule or warmup.

    p is y, where gradients are taken, while training; `eval()` turns it into the average x, `train()` back.
    As in the schedulefree package x is not kept; weight_sum and lr_max count per tensor here, not per group.
    Until the average of squares is long enough (5 steps at beta2 = 0.999) a silent phase moves nothing.

    Formula:
        beta1, beta2 = betas
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2*t*beta2**t / (1 - beta2**t)
        early = 0 if silent_sgd_phase else 1
        rect = sqrt((rho - 4)*(rho - 2)*rho_inf / ((rho_inf - 4)*(rho_inf - 2)*rho)) if rho > 4 else early
        gamma = lr*rect
        lr_max = maximum(lr_max, gamma)
        weight = t**r*lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum != 0 else 0
        v = beta2*v + (1 - beta2)*g**2
        d = (g / (sqrt(v / (1 - beta2**t)) + eps) if rho > 4 else g) + weight_decay*p
        p = lerp(p, z, c)
        p = p - gamma*(1 - beta1*(1 - c))*d
        z = z - gamma*d

        def eval():
            p = lerp(p, z, 1 - 1 / betas[0])

        def train():
            p = lerp(p, z, 1 - betas[0])

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0025; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 < betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        r (float | Tensor): default 0.0.
        weight_lr_power (float | Tensor): default 2.0.
        silent_sgd_phase (bool): default True.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        z: a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        weight_sum: one value per tensor, float32, or float64 beside float64 parameters.
        lr_max: one value per tensor, float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Defazio et al., NeurIPS 2024, arXiv:2405.15682.

    Example:
        >>> optimizer = optgen.RAdamScheduleFree(model.parameters(), lr=0.0025)
        >>> optimizer.step()
        >>> optimizer.eval()  # before model.eval(), and optimizer.train() before training goes on
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0025,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        r: float | Tensor = 0.0,
        weight_lr_power: float | Tensor = 2.0,
        silent_sgd_phase: bool = True,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RMSprop(Optimizer):
    """RMSprop: the gradient over its root mean square.

    centered: the standard deviation in its place, Graves, 2013, arXiv:1308.0850.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        v = alpha*v + (1 - alpha)*g**2
        if centered:
            g_avg = lerp(g_avg, g, 1 - alpha)
        d = g / (sqrt(v - g_avg**2 if centered else v) + eps)
        if momentum > 0:
            b = momentum*b + d
            d = b
        p = p - lr*d

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        alpha (float | Tensor): default 0.99; needs alpha >= 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs momentum >= 0.
        centered (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        square_avg: v, a value per element, in state_dtype or the parameter's dtype.
        momentum_buffer: b, a value per element, in state_dtype or the parameter's dtype.
        grad_avg: g_avg, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Tieleman & Hinton, Coursera lecture 6.5, 2012.

    Example:
        >>> optimizer = optgen.RMSprop(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        alpha: float | Tensor = 0.99,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.0,
        momentum: float | Tensor = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RMSpropTF(Optimizer):
    """RMSpropTF: RMSprop as TensorFlow has it.

    eps stands inside the root, the average of squares starts at 1, and the momentum holds lr.  Names and
    defaults: timm's RMSpropTF.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        v = lerp(v, g**2, 1 - alpha)
        if centered:
            average = lerp(average, g, 1 - alpha)
        d = lr*g / sqrt((v - average**2 if centered else v) + eps)
        if momentum != 0:
            b = momentum*b + d
            p = p - b
        else:
            p = p - d

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        alpha (float | Tensor): default 0.9; needs 0 <= alpha < 1.
        eps (float | Tensor): small number against division by 0; default 1e-10; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs momentum >= 0.
        centered (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        square_avg: v, a value per element, in state_dtype or the parameter's dtype.
        grad_avg: average, a value per element, in state_dtype or the parameter's dtype.
        momentum_buffer: b, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Tieleman & Hinton, Coursera lecture 6.5, 2012.

    Example:
        >>> optimizer = optgen.RMSpropTF(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        alpha: float | Tensor = 0.9,
        eps: float | Tensor = 1e-10,
        weight_decay: float | Tensor = 0.0,
        momentum: float | Tensor = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class RowWiseAdagrad(Optimizer):
    """RowWiseAdagrad: Adagrad with one accumulator for each row of an embedding table.

    The accumulator adds the mean of g**2 along the last dimension.

    Formula:
        v = v + mean(g**2, axis=-1)
        p = p - lr*g / (sqrt(v) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum1: v, a value per row, float32, or float64 beside float64 parameters.

    Reference:
        Duchi et al., JMLR 2011; the row-wise form is that of FBGEMM and DLRM.

    Example:
        >>> optimizer = optgen.RowWiseAdagrad(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Rprop(Optimizer):
    """Rprop: resilient backpropagation, by the sign of the gradient alone.

    Where the sign has turned the step size shrinks, and the parameter waits a step, as in torch.optim.

    Formula:
        shrink, grow = etas
        turn = g*last
        factor = grow if turn > 0 else shrink if turn < 0 else 1
        step_size = clip(step_size*factor, step_sizes[0], step_sizes[1])
        last = 0 if turn < 0 else g
        p = p - sign(last)*step_size

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        etas (tuple[float | Tensor, float | Tensor]): default (0.5, 1.2); needs 0 < etas[0] < 1 <
            etas[1].
        step_sizes (tuple[float | Tensor, float | Tensor]): default (1e-06, 50.0).
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        prev: last, a value per element, in state_dtype or the parameter's dtype.
        step_size: a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Riedmiller & Braun, IEEE ICNN 1993.

    Example:
        >>> optimizer = optgen.Rprop(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        etas: tuple[float | Tensor, float | Tensor] = (0.5, 1.2),
        step_sizes: tuple[float | Tensor, float | Tensor] = (1e-06, 50.0),
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGD(Optimizer):
    """SGD: stochastic gradient descent with momentum, or with Nesterov's.

    As in torch.optim the buffer starts as the first gradient, undamped, and lr scales what leaves it.

    Formula:
        if weight_decay != 0:
            g = g + weight_decay*p
        if momentum != 0:
            b = g if t == 1 else momentum*b + (1 - dampening)*g
            g = g + momentum*b if nesterov else b
        p = p - lr*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs momentum >= 0, not
            nesterov or (momentum > 0 and dampening == 0).
        dampening (float | Tensor): default 0.0; needs not nesterov or (momentum > 0 and dampening ==
            0).
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        nesterov (bool): use Nesterov's momentum; default False; needs not nesterov or (momentum > 0 and
            dampening == 0).
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: b, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Polyak, 1964; Nesterov, 1983; Sutskever et al., ICML 2013.

    Example:
        >>> optimizer = optgen.SGD(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.0,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGDP(Optimizer):
    """SGDP: SGD without the part of the update that only changes the norm of scale-invariant weights.

    A tensor of two or more dimensions counts as scale-invariant where its gradient is nearly orthogonal to it,
    in each index of the first dimension or else as a whole; then the update loses its part along p, and p decays
    less.  Decay is decoupled, over 1 - momentum, as in the authors' code, whose defaults these are (lr:
    pytorch_optimizer's).  The denominator of a cosine is at least eps/sqrt(n).

    Formula:
        b = momentum*b + (1 - dampening)*g
        x = momentum*b + g if nesterov else b
        decay = 1
        if ndim >= 2:
            cosine = abs(dot(g, p, axis=unit)) / maximum(norm(g, axis=unit)*rms(p, axis=unit), eps)
            by_unit = amax(cosine) < delta
            whole = abs(dot(g, p)) / maximum(norm(g)*rms(p), eps) < delta
            size = norm(p, axis=unit) if by_unit else norm(p)
            along = (dot(p, x, axis=unit) if by_unit else dot(p, x)) / (size + eps)**2
            x = x - along*p if by_unit or whole else x
            decay = wd_ratio if by_unit or whole else 1
        p = p*(1 - lr*weight_decay*decay / (1 - momentum))
        p = p - lr*x

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs 0 <= momentum < 1.
        dampening (float | Tensor): default 0.0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        delta (float | Tensor): default 0.1; needs delta >= 0.
        wd_ratio (float | Tensor): default 0.1; needs wd_ratio >= 0.
        nesterov (bool): use Nesterov's momentum; default False.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum: b, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Heo et al., ICLR 2021, arXiv:2006.08217.

    Example:
        >>> optimizer = optgen.SGDP(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.0,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        delta: float | Tensor = 0.1,
        wd_ratio: float | Tensor = 0.1,
        nesterov: bool = False,
        eps: float | Tensor = 1e-08,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGDSaI(Optimizer):
    """SGDSaI: momentum with each tensor's rate scaled once, by the first gradient's signal-to-noise ratio.

    The ratio is norm(g) / std(g) of the first step, and norm(g) alone where std(g) is 0; pytorch_optimizer takes
    that for every vector.  The authors' code starts m at the first gradient and, since its version 1.0.4, divides
    by the largest ratio of the model.  Defaults: the authors'.

    Formula:
        p = p*(1 - lr*weight_decay)
        sigma = sqrt(sum((g - mean(g))**2) / maximum(numel - 1, 1))
        first = norm(g) / (sigma + eps) if sigma > 0 else norm(g)
        snr = first if t == 1 else snr
        m = momentum*m + (1 - momentum)*g
        p = p - lr*snr*m

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        eps (float | Tensor): small number against division by 0; default 1e-08; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.01; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: m, a value per element, in state_dtype or the parameter's dtype.
        gsnr: snr, one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Xu et al., 2024, arXiv:2412.11768.

    Example:
        >>> optimizer = optgen.SGDSaI(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        momentum: float | Tensor = 0.9,
        eps: float | Tensor = 1e-08,
        weight_decay: float | Tensor = 0.01,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGDScheduleFree(Optimizer):
    """SGDScheduleFree: SGD without a schedule.

    p is y, where gradients are taken, while training; `eval()` turns it into the average x, `train()` back.
    As in the schedulefree package x is not kept; weight_sum and lr_max count per tensor here, not per group.

    Formula:
        gamma = lr*minimum(t / maximum(warmup_steps, 1), 1)
        lr_max = maximum(lr_max, gamma)
        weight = t**r*lr_max**weight_lr_power
        weight_sum = weight_sum + weight
        c = weight / weight_sum if weight_sum != 0 else 0
        d = g + weight_decay*p
        p = lerp(p, z, c)
        p = p - gamma*(1 - momentum*(1 - c))*d
        z = z - gamma*d

        def eval():
            p = lerp(p, z, 1 - 1 / momentum)

        def train():
            p = lerp(p, z, 1 - momentum)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 1.0; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 < momentum < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        warmup_steps (float | Tensor): default 0.0; needs warmup_steps >= 0.
        r (float | Tensor): default 0.0.
        weight_lr_power (float | Tensor): default 2.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        z: a value per element, in state_dtype or the parameter's dtype.
        weight_sum: one value per tensor, float32, or float64 beside float64 parameters.
        lr_max: one value per tensor, float32, or float64 beside float64 parameters.

    Reference:
        Defazio et al., NeurIPS 2024, arXiv:2405.15682.

    Example:
        >>> optimizer = optgen.SGDScheduleFree(model.parameters(), lr=1.0)
        >>> optimizer.step()
        >>> optimizer.eval()  # before model.eval(), and optimizer.train() before training goes on
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        warmup_steps: float | Tensor = 0.0,
        r: float | Tensor = 0.0,
        weight_lr_power: float | Tensor = 2.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGDW(Optimizer):
    """SGDW: SGD with decoupled weight decay.

    As in pytorch_optimizer, whose defaults these are: lr scales the decay, where the paper's Algorithm 1 has
    only its schedule do so, and the buffer is that of torch.optim.SGD.

    Formula:
        p = p*(1 - lr*weight_decay)
        if momentum != 0:
            b = g if t == 1 else momentum*b + (1 - dampening)*g
            g = g + momentum*b if nesterov else b
        p = p - lr*g

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs momentum >= 0, not
            nesterov or (momentum > 0 and dampening == 0).
        dampening (float | Tensor): default 0.0; needs not nesterov or (momentum > 0 and dampening ==
            0).
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        nesterov (bool): use Nesterov's momentum; default False; needs not nesterov or (momentum > 0 and
            dampening == 0).
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: b, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.

    Example:
        >>> optimizer = optgen.SGDW(model.parameters(), lr=0.0001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        momentum: float | Tensor = 0.0,
        dampening: float | Tensor = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGHMC(Optimizer):
    """SGHMC: stochastic gradient Hamiltonian Monte Carlo.

    Equation 15 of the paper: lr is its eta, friction its alpha, noise its beta_hat, an estimate of the
    gradient's own noise.  The loss is the negative logarithm of the posterior.  v moves before p.
    temperature scales the noise's variance: 1 samples the posterior, 0 descends.

    Formula:
        v = (1 - friction)*v - lr*g + sqrt(2*(friction - noise)*lr*temperature)*normal()
        p = p + v

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0001; needs lr >= 0.
        friction (float | Tensor): default 0.1; needs 0 <= noise <= friction <= 1.
        noise (float | Tensor): default 0.0; needs 0 <= noise <= friction <= 1.
        temperature (float | Tensor): default 1.0; needs temperature >= 0.
        seed (float | Tensor): seed of the random numbers; default 0.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Chen, Fox & Guestrin, ICML 2014, arXiv:1402.4102.

    Example:
        >>> optimizer = optgen.SGHMC(model.parameters(), lr=0.0001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0001,
        friction: float | Tensor = 0.1,
        noise: float | Tensor = 0.0,
        temperature: float | Tensor = 1.0,
        seed: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SGLD(Optimizer):
    """SGLD: stochastic gradient Langevin dynamics.

    The loss is the negative logarithm of the posterior: a minibatch's likelihood is scaled up to all data.
    temperature scales the noise's variance: 1 samples the posterior, 0 descends.

    Formula:
        p = p - lr / 2*g + sqrt(lr*temperature)*normal()

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        temperature (float | Tensor): default 1.0; needs temperature >= 0.
        seed (float | Tensor): seed of the random numbers; default 0.0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.

    Reference:
        Welling & Teh, ICML 2011.

    Example:
        >>> optimizer = optgen.SGLD(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        temperature: float | Tensor = 1.0,
        seed: float | Tensor = 0.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class SM3(Optimizer):
    """SM3: Adagrad with one accumulator for each index of each dimension.

    SM3-II of the paper: the sets that cover a tensor are its slices along each of its first five dimensions.
    0/0 is 0 by eps, which pytorch_optimizer adds under the root; keys and defaults are its own too.
    Its further beta is not in the paper.

    Formula:
        nu = mu0
        if ndim > 1:
            nu = minimum(nu, mu1)
        if ndim > 2:
            nu = minimum(nu, mu2)
        if ndim > 3:
            nu = minimum(nu, mu3)
        if ndim > 4:
            nu = minimum(nu, mu4)
        nu = nu + g**2
        mu0 = amax(nu, axis=unit)
        if ndim > 1:
            mu1 = amax(nu, axis=dim(1))
        if ndim > 2:
            mu2 = amax(nu, axis=dim(2))
        if ndim > 3:
            mu3 = amax(nu, axis=dim(3))
        if ndim > 4:
            mu4 = amax(nu, axis=dim(4))
        x = g / sqrt(nu + eps)
        if momentum != 0:
            m = momentum*m + (1 - momentum)*x
            x = m
        p = p - lr*x

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.1; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.0; needs 0 <= momentum < 1.
        eps (float | Tensor): small number against division by 0; default 1e-30; needs eps >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: m, a value per element, in state_dtype or the parameter's dtype.
        accumulator_0: mu0, a value per unit, float32, or float64 beside float64 parameters.
        accumulator_1: mu1, a value per dim(1), float32, or float64 beside float64 parameters.
        accumulator_2: mu2, a value per dim(2), float32, or float64 beside float64 parameters.
        accumulator_3: mu3, a value per dim(3), float32, or float64 beside float64 parameters.
        accumulator_4: mu4, a value per dim(4), float32, or float64 beside float64 parameters.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Anil, Gupta, Koren & Singer, NeurIPS 2019, arXiv:1901.11150.

    Example:
        >>> optimizer = optgen.SM3(model.parameters(), lr=0.1)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float | Tensor = 0.0,
        eps: float | Tensor = 1e-30,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Signum(Optimizer):
    """Signum: the sign of the momentum; SignSGD with momentum=0.

    The paper's Signum, and with momentum=0, which keeps no state, its signSGD.  momentum is
    the paper's beta.  Defaults: pytorch_optimizer's SignSGD.

    Formula:
        if momentum != 0:
            m = lerp(m, g, 1 - momentum)
            g = m
        p = p - lr*sign(g)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        momentum (float | Tensor): coefficient of momentum; default 0.9; needs 0 <= momentum < 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        momentum_buffer: m, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Bernstein et al., ICML 2018, arXiv:1802.04434.

    Example:
        >>> optimizer = optgen.Signum(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        momentum: float | Tensor = 0.9,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Sophia(Optimizer):
    """Sophia: momentum over an estimate of the Hessian's diagonal, clipped.

    `step(hess=...)` hands the estimate in, Hutchinson's or Gauss-Newton-Bartlett's: only that of every k-th
    step counts, from the first, and it may be left out of the others.
    Defaults: the paper's for Sophia-H; lr is pytorch_optimizer's, whose SophiaH multiplies it by p, gamma here.

    Formula:
        beta1, beta2 = betas
        m = beta1*m + (1 - beta1)*g
        h = beta2*h + (1 - beta2)*hess if (t - 1) % k == 0 else h
        p = p*(1 - lr*weight_decay)
        p = p - lr*clip(m / maximum(gamma*h, eps), -1, 1)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.0006; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.96, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        gamma (float | Tensor): default 0.01; needs gamma > 0.
        eps (float | Tensor): small number against division by 0; default 1e-12; needs eps > 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        k (float | Tensor): default 10.0; needs k >= 1.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        hessian: h, a value per element, in state_dtype or the parameter's dtype.

    Inputs of step():
        hess: a tensor of each parameter's shape, as a mapping from parameters or a sequence; default 0.

    Reference:
        Liu et al., ICLR 2024, arXiv:2305.14342.

    Example:
        >>> optimizer = optgen.Sophia(model.parameters(), lr=0.0006)
        >>> optimizer.step(hess=hess)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.0006,
        betas: tuple[float | Tensor, float | Tensor] = (0.96, 0.99),
        gamma: float | Tensor = 0.01,
        eps: float | Tensor = 1e-12,
        weight_decay: float | Tensor = 0.0,
        k: float | Tensor = 10.0,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class StableAdamW(Optimizer):
    """StableAdamW: AdamW with Adafactor's update clipping.

    The betas themselves are debiased, so that m and v need no correction.  A tensor whose gradient has
    outgrown v takes a smaller step and decays less.  In that ratio v is at least eps**2.
    betas and eps default to those of the package optimi.

    Formula:
        beta1 = betas[0]*(1 - betas[0]**(t - 1)) / (1 - betas[0]**t)
        beta2 = betas[1]*(1 - betas[1]**(t - 1)) / (1 - betas[1]**t)
        m = beta1*m + (1 - beta1)*g
        v = beta2*v + (1 - beta2)*g**2
        rms_t = sqrt(mean(g**2 / maximum(v, eps**2)))
        eta = lr / maximum(1, rms_t)
        p = p*(1 - eta*weight_decay)
        p = p - eta*m / (sqrt(v) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.99); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 1e-06; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.01; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Wortsman et al., NeurIPS 2023, arXiv:2304.13013.

    Example:
        >>> optimizer = optgen.StableAdamW(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        eps: float | Tensor = 1e-06,
        weight_decay: float | Tensor = 0.01,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Tiger(Optimizer):
    """Tiger: the sign of the momentum, with decoupled weight decay.

    Lion with equal betas.  This is the update alone: the author's TensorFlow code also scales lr by each
    parameter's root mean square, and shrinks parameters whose gradient holds a NaN.  Defaults: that code's.

    Formula:
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta)
        p = p - lr*sign(m)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.001; needs lr >= 0.
        beta (float | Tensor): default 0.965; needs 0 <= beta < 1.
        weight_decay (float | Tensor): strength of weight decay; default 0.01; needs weight_decay >= 0.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.

    Reference:
        Su, 2023, kexue.fm/archives/9512.

    Example:
        >>> optimizer = optgen.Tiger(model.parameters(), lr=0.001)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.001,
        beta: float | Tensor = 0.965,
        weight_decay: float | Tensor = 0.01,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...

class Yogi(Optimizer):
    """Yogi: Adam whose second moment changes by no more than the squared gradient.

    The paper has no bias correction; debias=True adds Adam's, which the packages have.
    m starts at 0 (pytorch_optimizer: at initial_accumulator, like v).  Defaults: pytorch_optimizer's.

    Formula:
        beta1, beta2 = betas
        p = p*(1 - lr*weight_decay)
        m = lerp(m, g, 1 - beta1)
        v = v - (1 - beta2)*sign(v - g**2)*g**2
        m_hat = m / (1 - beta1**t) if debias else m
        v_hat = v / (1 - beta2**t) if debias else v
        p = p - lr*m_hat / (sqrt(v_hat) + eps)

    Args:
        params: tensors, pairs of a name and a tensor, or parameter groups, as in torch.
        lr (float | Tensor): learning rate; default 0.01; needs lr >= 0.
        betas (tuple[float | Tensor, float | Tensor]): coefficients of the running averages or sums;
            default (0.9, 0.999); needs 0 <= betas[0] < 1, 0 <= betas[1] < 1.
        eps (float | Tensor): small number against division by 0; default 0.001; needs eps >= 0.
        weight_decay (float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.
        initial_accumulator (float | Tensor): default 1e-06; needs initial_accumulator >= 0.
        debias (bool): default False.
        maximize (bool): ascend instead of descend; default False.
        backend (str): "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy"; default "auto".
        math (str): "exact" (the same bits on every back end) or "fast"; default "exact".
        state_dtype (dtype | None): of new state with a value per element; default None, each parameter's own.
        foreach: torch's; it changes nothing.
        fused (bool | None): let a `GradScaler` leave scale and infinities to the step; default None, False.
        capturable (bool): keep step counts on the GPU, so that a CUDA graph can replay steps; default False.
        differentiable: torch's; True is refused.

    State:
        step: the number of this parameter's steps, float32, or float64 where that is torch's default.
        exp_avg: m, a value per element, in state_dtype or the parameter's dtype.
        exp_avg_sq: v, a value per element, in state_dtype or the parameter's dtype.
        What the options or a tensor's shape leave unused is not kept.

    Reference:
        Zaheer et al., NeurIPS 2018.

    Example:
        >>> optimizer = optgen.Yogi(model.parameters(), lr=0.01)
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.01,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 0.001,
        weight_decay: float | Tensor = 0.0,
        initial_accumulator: float | Tensor = 1e-06,
        debias: bool = False,
        *,
        maximize: bool = False,
        backend: Literal["auto", "triton", "cpu", "numpy"] = "auto",
        math: Literal["exact", "fast"] = "exact",
        state_dtype: torch.dtype | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None: ...
