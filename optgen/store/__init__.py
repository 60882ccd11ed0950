"""Parameter stores with gradient accumulators, and optimizers over them, as in Gen.jl.

In: parameters by (owner, name), gradients of log probabilities, configurations of updates. Out: stores in
memory, on a GPU or on a file system, whose parameters any rule can update.
"""

from optgen.store.base import ParameterID, ParameterStore
from optgen.store.configurations import (
    ADAM,
    Configuration,
    DecayStepGradientDescent,
    FixedStepGradientDescent,
    GradientDescent,
    RuleConf,
    TorchOptimConf,
)
from optgen.store.context import (
    PARAMETER_STORE_KEY,
    default_parameter_context,
    default_parameter_store,
    get_parameters,
    get_store,
    register_parameters,
    unregister_parameters,
)
from optgen.store.files import FileParameterStore
from optgen.store.gradients import accumulate_param_gradients, train
from optgen.store.memory import TorchParameterStore
from optgen.store.released import (
    ParamUpdate,
    get_param,
    get_param_grad,
    init_param,
    set_param,
    set_param_grad,
    zero_param_grad,
)
from optgen.store.updates import (
    CompositeOptimizer,
    StoreOptimizer,
    apply_update,
    init_optimizer,
    register_update,
)

__all__ = [
    "ADAM",
    "PARAMETER_STORE_KEY",
    "CompositeOptimizer",
    "Configuration",
    "DecayStepGradientDescent",
    "FileParameterStore",
    "FixedStepGradientDescent",
    "GradientDescent",
    "ParamUpdate",
    "ParameterID",
    "ParameterStore",
    "RuleConf",
    "StoreOptimizer",
    "TorchOptimConf",
    "TorchParameterStore",
    "accumulate_param_gradients",
    "apply_update",
    "default_parameter_context",
    "default_parameter_store",
    "get_param",
    "get_param_grad",
    "get_parameters",
    "get_store",
    "init_optimizer",
    "init_param",
    "register_parameters",
    "register_update",
    "set_param",
    "set_param_grad",
    "train",
    "unregister_parameters",
    "zero_param_grad",
]
