"""A preset completed by its data: what it leaves out of size, channels and numbers of classes."""

from diffcli.data.fitting import fitted
from diffcli.preset import Preset


def fitted_to_data(preset: Preset) -> Preset:
    """The preset with what it leaves to its data. Reads nothing where it leaves nothing out.

    Raises UserError where the data do not tell it: where sizes differ, or there are no classes to count.
    """
    data = fitted(preset.data)
    if data is not preset.data:
        preset = preset.model_copy(update={"data": data})
    if preset.task.leaves_classes_out:
        specs = data.model_copy(update={"in_memory": False}).build("train").specs
        count = specs["label"].class_count if "label" in specs else None
        if count is not None:
            preset = preset.model_copy(update={"task": preset.task.of_classes(count)})
    return preset
