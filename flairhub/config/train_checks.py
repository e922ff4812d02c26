"""What the training schema cannot say key by key: keys that must fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flairhub.config.normalisation import elevation_mode
from flairhub.config.problems import Problem
from flairhub.config.shared_checks import check_bands, check_classes, check_inputs, check_statistics
from flairhub.config.train_schema import LabelConfig, MultitempModel, TrainConfig
from flairhub.config.yaml_file import KeyPath
from flairhub.modalities import MODALITIES
from flairhub.tasks import level_sizes


def check_train(config: TrainConfig) -> Iterator[Problem]:
    """Yield every contradiction in a training configuration, without opening any path."""
    yield from _check_paths(config)
    yield from check_inputs(config.modalities.active)
    yield from _check_preparation(config)
    yield from _check_networks(config)
    yield from _check_monitor(config)
    if not any(weight for _, weight in config.hyperparams.losses):
        yield Problem(("hyperparams", "losses"), "every loss has weight 0: nothing would be learned.")
    for label in config.labels:
        if label not in config.labels_configs:
            yield Problem(("labels_configs", label), "required for this label set, but missing.", (("labels",),))
    configs = config.labels_configs
    weights = {label: configs[label].task_weight for label in config.labels if label in configs}
    if weights and not any(weights.values()):
        paths = tuple(("labels_configs", label, "task_weight") for label in weights)
        text = f"{', '.join(weights)}: every task has weight 0: nothing would be learned."
        yield Problem(("labels_configs",), text, (*paths, ("labels",)))
    for label, options in config.labels_configs.items():
        yield from _check_label(label, options)


def _check_paths(config: TrainConfig) -> Iterator[Problem]:
    tasks, paths = config.tasks, config.paths
    needs: list[tuple[str, str]] = []
    if tasks.trains:
        needs += [("train_csv", "tasks.train"), ("val_csv", "tasks.train")]
    if tasks.metrics_only or tasks.predict:
        needs += [("test_csv", "tasks.metrics_only" if tasks.metrics_only else "tasks.predict")]
    for key, reason in needs:
        if getattr(paths, key) is None and paths.cube is None:
            text = f"required because {reason} is true (or give paths.cube, a cube that knows its splits)."
            yield Problem(("paths", key), text, (("tasks",), ("paths", "cube")))
    start = tasks.train_tasks
    if start.init_weights_only_from_ckpt and start.resume_training_from_ckpt:
        path = ("tasks", "train_tasks", "resume_training_from_ckpt")
        yield Problem(path, "contradicts init_weights_only_from_ckpt: true. Set one of them to false.")
    if paths.ckpt_model_path is not None or tasks.metrics_only:
        return
    if tasks.train:
        reason = "".join(f"tasks.train_tasks.{key} is true" for key, enabled in start if enabled)
    else:
        reason = "tasks.predict is true without training" if tasks.predict else ""
    if reason:
        yield Problem(("paths", "ckpt_model_path"), f"required because {reason}.", (("tasks",),))


def _check_preparation(config: TrainConfig) -> Iterator[Problem]:
    modalities = config.modalities
    options, normalization = modalities.pre_processings, modalities.normalization
    for name, channels in modalities.inputs_channels.items():
        yield from check_bands(MODALITIES[name], channels, ("modalities", "inputs_channels", name))
    if all(modalities.modality_dropout[name] == 1 for name in modalities.active) and modalities.active:
        yield Problem(("modalities", "modality_dropout"), "every enabled input is always dropped. Keep one below 1.")
    if normalization.norm_type != "custom":
        return
    for name in modalities.active:
        row = MODALITIES[name]
        if row.is_series:
            continue
        elevation = None
        if row.is_elevation:
            elevation = elevation_mode(options.calc_elevation, options.calc_elevation_stack_dsm)
        base = ("modalities", "normalization")
        statistics = {
            (*base, f"{name}_means"): normalization.means(name),
            (*base, f"{name}_stds"): normalization.stds(name),
        }
        channels_path: KeyPath = ("modalities", "inputs_channels", name)
        related = (channels_path, ("modalities", "pre_processings"), (*base, "norm_type"), ("modalities", "inputs"))
        yield from check_statistics(row, modalities.inputs_channels.get(name), elevation, statistics, related)


def _check_networks(config: TrainConfig) -> Iterator[Problem]:
    arch = config.models.monotemp_model.arch
    path = ("models", "monotemp_model", "arch")
    images = [name for name in config.modalities.active if not MODALITIES[name].is_series]
    if arch is None and images:
        text = f"required for {', '.join(images)}, but missing: <encoder>-<decoder>, such as resnet34-unet."
        yield Problem(path, text, (("modalities", "inputs"),))
    elif arch is not None:
        encoder, dash, decoder = arch.rpartition("-")
        if not (encoder and dash and decoder):
            yield Problem(path, f"got {arch!r}, expected <encoder>-<decoder>, such as resnet34-unet.")
    yield from _check_multitemp(config.models.multitemp_model)


def _check_multitemp(model: MultitempModel) -> Iterator[Problem]:
    base = ("models", "multitemp_model")
    for key, text, related in model.contradictions():
        yield Problem((*base, key), text, tuple((*base, name) for name in related))


def _check_monitor(config: TrainConfig) -> Iterator[Problem]:
    monitor, mode = config.saving.ckpt_monitor, config.saving.ckpt_monitor_mode
    path = ("saving", "ckpt_monitor")
    logged = ("val_miou", "val_loss", "train_loss", *(f"val_miou/{label}" for label in config.labels))
    best = "min" if monitor.endswith("loss") else "max"
    if monitor not in logged:
        yield Problem(path, f"got {monitor!r}, expected one of {', '.join(logged)}.", (("labels",),))
    elif mode != best:
        size = "smallest" if best == "min" else "largest"
        text = f"got {mode!r}, but the {size} {monitor} is the best. Write {best}."
        yield Problem(("saving", "ckpt_monitor_mode"), text, (path,))


def _check_label(label: str, options: LabelConfig) -> Iterator[Problem]:
    base: KeyPath = ("labels_configs", label)
    sizes = level_sizes(label)
    if options.label_channel_nomenclature > len(sizes):
        text = f"got {options.label_channel_nomenclature}, expected 1..{len(sizes)} for {label}."
        yield Problem((*base, "label_channel_nomenclature"), text)
        return
    level = options.label_channel_nomenclature
    yield from check_classes(label, level, options.value_name, (*base, "value_name"))
    n_classes = len(options.value_name) or sizes[level - 1]
    weights, path = options.value_weights, (*base, "value_weights")
    groups: dict[KeyPath, Mapping[int, float]] = {("default_exceptions",): weights.default_exceptions}
    groups |= {("per_modality_exceptions", name): entry for name, entry in weights.per_modality_exceptions.items()}
    for key, exceptions in groups.items():
        for index in exceptions:
            if index >= n_classes:
                related = ((*base, "value_name"), (*base, "label_channel_nomenclature"))
                yield Problem((*path, *key, index), f"no such class, expected 0..{n_classes - 1}.", related)
    if not any(weights.default_exceptions.get(index, weights.default) for index in range(n_classes)):
        yield Problem(path, "every class has weight 0: nothing would be learned.", ((*base, "value_name"),))
