"""Everything that is read and checked before compute is spent: data, attribute, target, classifiers, model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sims.data.dataset import Dataset
from sims.data.sources import load as load_data
from sims.errors import UserError
from sims.experiments.base_model import given_model, require_shape
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.shift import attributes, user_classifiers
from sims.experiments.shift.attributes import Attribute, Classifier, Labelled, joint
from sims.experiments.shift.measuring import Meter, check_accuracy
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.target import check_support, cut, parts_of, shares_of, split_parts, target_of
from sims.files import digest
from sims.model import Model
from sims.runs.directory import Run
from sims.seeds import derive_seed

Array = np.ndarray
TORCHSCRIPT = "torchscript:"


@dataclass(frozen=True)
class Problem:
    """What is to be solved: the attribute, its values of the real images, the target, and what the base is trained on.

    ``parts`` are the attributes that it is made of, each with its values of the training and of the held-out images.
    ``train_labels`` (n,) and ``test_labels`` (m,) are values of the attribute, -1 = unknown; the latter are None where
    only the training data are labelled.
    """

    train: Dataset
    test: Dataset
    base_data: Dataset
    parts: list[Labelled]
    test_parts: list[Labelled] | None
    attribute: Attribute
    train_labels: Array
    test_labels: Array | None
    target: Array
    model: Model | None


def read_problem(run: Run, options: ShiftOptions) -> Problem:
    """Read and check; UserError, before anything is trained, for whatever does not fit together."""
    train, test = read_images(run, options.data, options.seed)

    def whole() -> Dataset:
        return load_data(options.data.path, options=options.data.source)

    parts, test_parts = split_parts(options.attributes, train, test, options.labels, whole)
    attribute, labels = joint(parts)
    test_labels = None if test_parts is None else joint(test_parts)[1]

    def like(path: str) -> Array:
        other = load_data(path, options=options.data.source)
        theirs, values = joint(parts_of(options.attributes, other, None))
        if theirs.values != attribute.values:
            raise UserError(
                f"target like:{path}: its values of {attribute.name} are {', '.join(theirs.values)}, and those of "
                f"{options.data.path} {', '.join(attribute.values)}: give data with the same classes"
            )
        return shares_of(values, len(attribute.values))

    target = target_of(options.target, attribute, like)
    check_support(target, labels, attribute, options.data.path)
    model = _model(run, options, train)
    for part in (options.auxiliary.train, *([options.base.train] if model is None else [])):
        part.check_parts(run.num_processes)
    base_data = train
    if options.imbalance:
        base_data = cut(train, options.imbalance, derive_seed("imbalance", options.seed))
    same_data(run, options.data.path, train, test, labels=digest(labels.tobytes())[:16])
    conditional = options.data.conditional if model is None else model.num_classes > 0
    if conditional and all(text == "class" or ":" in text for text in options.attributes) and options.labels is None:
        raise UserError(
            f"the base has classes, and {attribute.name} follows from them: guidance does not change the class that a "
            "sample is drawn with; draw the classes in the proportions that you want"
        )
    if not conditional:
        base_data = base_data.without_labels()
    return Problem(train, test, base_data, parts, test_parts, attribute, labels, test_labels, target, model)


def _model(run: Run, options: ShiftOptions, train: Dataset) -> Model | None:
    """The given model, its samples rounded to the values that the data can have."""
    model = given_model(options.model, options.sampler, run.device, weights=options.weights, download=options.download)
    if model is None:
        return None
    if model.codec.kind == "latents":
        raise UserError(
            f"{options.model} is a latent model, and classifiers of attributes see pixels: give a model of pixels"
        )
    require_shape(model, options.model, train.data_shape, options.data.path)
    return replace(model, codec=train.codec)


def open_meter(run: Run, options: ShiftOptions, problem: Problem) -> Meter:
    """Feature judge, classifiers and references; UserError for a classifier no better than chance."""
    given = given_classifiers(run, options, problem)
    judge = open_judge(run, problem.train, problem.test, options.evaluation)
    steering = given.get("steering") or _trained(run, problem, "steering", options)
    judging = given.get("judging") or _trained(run, problem, "judging", options)
    known = (problem.train_labels, problem.test_labels)
    return Meter(run, judge, steering, judging, problem.target, options.batch_size, *known)


def given_classifiers(run: Run, options: ShiftOptions, problem: Problem) -> dict[str, Classifier]:
    """The user's classifiers by role, "steering" and "judging" (one for each attribute, taken together)."""
    roles: dict[str, Classifier] = {}
    for role, given in (("steering", options.classifier), ("judging", options.judge)):
        if given:
            data, parts = _counted_on(run, problem)
            found = [_users(text, data, part, run) for text, part in zip(given, parts)]
            made = found[0] if len(found) == 1 else attributes.product(found, data, joint(parts), run.device)
            check_accuracy(made, options.min_accuracy, role)
            roles[role] = made
    if len({classifier.hash for classifier in roles.values()}) < len(roles):
        raise UserError("classifier and judge are the same: what steers must not judge; give another, or none")
    return roles


def _trained(run: Run, problem: Problem, role: str, options: ShiftOptions) -> Classifier:
    """A small classifier trained on the labels."""
    folder = run.path / "references" / role
    if run.is_main and not (folder / "0.safetensors").is_file():
        run.log(f"training the {role} classifier of {problem.attribute.name}")
        held_out = None if problem.test_labels is None else (problem.test, problem.test_labels)
        # The two learn from opposite halves.
        classifier = attributes.trained(
            problem.train, joint(problem.parts), 0, "a" if role == "steering" else "b", run.device,
            held_out=held_out, members=options.members,
        )  # fmt: skip
        attributes.save(classifier, folder)
    run.barrier()
    classifier = attributes.load(folder, run.device)
    check_accuracy(classifier, options.min_accuracy, role)
    return classifier


def _counted_on(run: Run, problem: Problem) -> tuple[Dataset, list[Labelled]]:
    """Labelled images to count a user's classifier's errors on: held-out ones, where there are some of every value."""
    held_out = problem.test_labels
    if problem.test_parts is not None and held_out is not None:
        counts = np.bincount(held_out[held_out >= 0], minlength=len(problem.attribute.values))
        if counts.min() >= attributes.LEAST:
            return problem.test, problem.test_parts
    run.log(
        "the errors of your classifiers are counted on training images, for want of labelled held-out ones: if they "
        "learned from these, proportions and intervals are too good (data.test gives others)"
    )
    return problem.train, problem.parts


def _users(text: str, data: Dataset, labelled: Labelled, run: Run) -> Classifier:
    if text.startswith(TORCHSCRIPT):
        return user_classifiers.torchscript(Path(text.removeprefix(TORCHSCRIPT)), data, labelled, run.device)
    return user_classifiers.from_callable(text, data, labelled, run.device)
