"""Bundles of version 0.2 name components where they were then; with today's package their configs still resolve."""

import pytest
from monai.bundle import ConfigParser

NAMES = """
    cascade: PerceivedCascade TissNet load_generator load_perceptor load_weights read_image_settings
    case_table: CaseTable
    comparators.modality_dropout: ModalityDropoutUNet25D
    comparators.pgan: PerceptualLoss PganLoss
    comparators.pix2pix: Pix2PixDiscriminatorLoss Pix2PixLoss
    comparators.pscgan: PriorThenSynthesis PscganDiscriminatorLoss PscganLoss
    comparators.uagan: ContrastCritic ContrastCriticLoss Uagan UaganLoss
    comparators.wang2020: WangLoss
    datasets.cases: load_datalist
    distributed: share start synchronise_batch_norm
    errors: ensure_writable explain_errors
    files: copy_whole
    handlers: LossProgressBar SeedEachEpoch TrainingCheckpoint ValidationPictures losses_of
    inference: CascadeInferer CheckedCases ChooseMapd FittedWindowInferer InvertTogetherd find_scans report_failed
    losses: DiscriminatorLoss TissNetLoss
    patchgan: PatchGAN
    quality: SaveImageSummaryd
    saving: SaveImageCased SaveImageOverviewd
    training: AdversarialUpdate constant_then_linear
    transforms: AbsoluteDifferenced LoadCased LoadImageCased NormalizeBraind RandEachChanneld
    unet25d: DualBranchUNet25D UNet25D
"""  # every ``_target_`` of the package in the configs of tissnet_brats and tissnet_vs 0.2.0
TARGETS = [
    f"{module.strip()}.{name}"
    for module, _, names in (line.partition(":") for line in NAMES.strip().splitlines())
    for name in names.split()
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_component_that_a_bundle_of_0_2_names_is_found(target):
    parser = ConfigParser({"component": {"_target_": f"tissnet_components.{target}", "_mode_": "callable"}})
    assert callable(parser.get_parsed_content("component"))


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        from tissnet_components import inference

        inference.nothing  # noqa: B018
