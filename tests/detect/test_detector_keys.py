"""Every key of a detector's configuration has a test that asserts what it means."""

from helpers.config_keys import CHECKPOINTS, OPTIM, STEP, check_keys_are_tested

from detect.config import DetectorConfig

AUGMENTATION = "detect/data/test_augmentation.py::"
FINE_TUNING = "detect/training/test_fine_tuning.py::"
BUILD = "detect/test_build.py::"
CROPS = "detect/rcnn/test_model.py::test_crops_are_cut_with_the_configurations_context_and_mode"
LOOP = "detect/training/test_train.py::test_the_loop_is_given_what_the_configuration_says"
MATCHING = "detect/rcnn/test_matching.py::"
MODEL = "detect/rcnn/test_model.py::"
NETWORK = "detect/test_build.py::test_the_crop_network_is_the_configurations"
OPEN = "detect/data/test_open.py::"
POSTPROCESS = "detect/rcnn/test_postprocess.py::"
PROPOSALS = "detect/proposals/test_proposals.py::"
SEARCH = "detect/proposals/test_selective_search.py::"
SPLITS = "detect/training/test_train.py::test_each_split_is_for_what_its_key_says"
WINDOWS = PROPOSALS + "test_windows_of_a_grid_have_its_sizes_ratios_and_step"
BEFORE_SUPPRESSION = PROPOSALS + "test_boxes_before_suppression_and_the_overlap_of_what_is_left"

TESTS = {
    "run": LOOP,
    "data.format": OPEN + "test_format_coco_in_both_layouts",
    "data.root": OPEN + "test_format_coco_in_both_layouts",
    "data.class_names": OPEN + "test_format_voc_with_class_names_in_the_order_given",
    "data.val_share": "detect/data/test_splits.py::test_val_share_and_split_seed_hold_images_out",
    "data.split_seed": "detect/data/test_splits.py::test_val_share_and_split_seed_hold_images_out",
    "data.train": SPLITS,
    "data.val": SPLITS,
    "data.test": SPLITS,
    "augment.flip": AUGMENTATION + "test_a_flip_mirrors_image_and_boxes",
    "augment.vertical_flip": AUGMENTATION + "test_a_flip_mirrors_image_and_boxes",
    "augment.scale": AUGMENTATION + "test_scale_is_the_range_of_the_factor_of_sizes",
    "augment.window": (
        "detect/training/test_from_data.py::"
        "test_small_objects_in_large_images_get_tiles_at_full_scale"
    ),
    "augment.colour": AUGMENTATION + "test_colour_is_the_fraction_that_brightness_changes_by",
    "model.variant": NETWORK,
    "model.width": NETWORK,
    "model.dropout": NETWORK,
    "model.weights": BUILD + "test_it_starts_from_the_files_weights",
    "model.init": FINE_TUNING + "test_what_is_kept_is_kept_bit_for_bit",
    "model.freeze": BUILD + "test_frozen_parts_learn_nothing",
    "model.proposer": BUILD + "test_each_proposer_is_built_with_its_own_settings",
    "model.learned.width": PROPOSALS + "test_width_and_channels_are_the_networks",
    "model.learned.weights": FINE_TUNING + "test_the_proposers_trunk_alone",
    "model.learned.freeze": BUILD + "test_frozen_parts_learn_nothing",
    "model.learned.scale": PROPOSALS + "test_with_a_scale_larger_images_are_looked_at_in_tiles",
    "model.learned.tile_size": PROPOSALS + "test_without_a_scale_the_longer_side_is_a_tiles",
    "model.learned.channels": PROPOSALS + "test_width_and_channels_are_the_networks",
    "model.learned.anchor_sizes": (
        PROPOSALS + "test_anchors_have_the_sizes_and_ratios_of_their_level"
    ),
    "model.learned.anchor_ratios": (
        PROPOSALS + "test_anchors_have_the_sizes_and_ratios_of_their_level"
    ),
    "model.learned.positive_iou": (
        PROPOSALS + "test_anchors_are_positive_and_negative_by_their_iou"
    ),
    "model.learned.negative_iou": (
        PROPOSALS + "test_anchors_are_positive_and_negative_by_their_iou"
    ),
    "model.learned.images_per_step": (
        PROPOSALS + "test_images_beyond_images_per_step_get_random_windows"
    ),
    "model.learned.pre_nms_top_n": BEFORE_SUPPRESSION,
    "model.learned.nms_thresh": BEFORE_SUPPRESSION,
    "model.grid.sizes": WINDOWS,
    "model.grid.aspect_ratios": WINDOWS,
    "model.grid.step": WINDOWS,
    "model.selective_search.mode": SEARCH + "test_it_finds_objects_and_ranks_are_scores",
    "model.selective_search.top_n": SEARCH + "test_it_finds_objects_and_ranks_are_scores",
    "model.selective_search.cache": SEARCH + "test_the_cache_saves_the_search",
    "model.precomputed": (
        "detect/training/test_train.py::test_precomputed_proposals_are_those_of_the_file"
    ),
    "model.proposals_per_image": BUILD + "test_learned_proposals_are_so_many_and_no_worse",
    "model.proposals_per_image_train": BUILD + "test_learned_proposals_are_so_many_and_no_worse",
    "model.proposal_score_thresh": BUILD + "test_learned_proposals_are_so_many_and_no_worse",
    "model.rcnn.crop_size": MODEL + "test_crop_size_is_the_variants_or_the_configs",
    "model.rcnn.crop_mode": CROPS,
    "model.rcnn.context": CROPS,
    "model.rcnn.positive_iou": (
        MATCHING + "test_ious_say_what_is_positive_background_and_trains_the_regression"
    ),
    "model.rcnn.negative_iou": (
        MATCHING + "test_ious_say_what_is_positive_background_and_trains_the_regression"
    ),
    "model.rcnn.crops_per_image": (MATCHING + "test_crops_of_an_image_and_the_share_of_positives"),
    "model.rcnn.positive_fraction": (
        MATCHING + "test_crops_of_an_image_and_the_share_of_positives"
    ),
    "model.rcnn.jitter_copies": (MATCHING + "test_boxes_around_the_objects_are_so_many_and_so_far"),
    "model.rcnn.jitter_strength": (
        MATCHING + "test_boxes_around_the_objects_are_so_many_and_so_far"
    ),
    "model.rcnn.regression_iou": (
        MATCHING + "test_ious_say_what_is_positive_background_and_trains_the_regression"
    ),
    "model.rcnn.delta_std": MODEL + "test_deltas_are_in_units_of_delta_std",
    "model.rcnn.regression_weight": MODEL + "test_losses_against_their_formulas",
    "model.rcnn.objectness_weight": MODEL + "test_the_proposals_score_takes_its_share",
    "model.rcnn.score_thresh": POSTPROCESS + "test_thresholds_of_scores_and_of_overlap",
    "model.rcnn.nms_thresh": POSTPROCESS + "test_thresholds_of_scores_and_of_overlap",
    "model.rcnn.soft_nms_sigma": (
        POSTPROCESS + "test_soft_suppression_finds_a_neighbour_that_hard_suppression_drops"
    ),
    "model.rcnn.agnostic_nms": (
        POSTPROCESS + "test_suppression_among_all_classes_or_in_each_is_torchvisions"
    ),
    "model.rcnn.detections_per_image": (
        MODEL + "test_what_is_kept_of_an_image_grows_with_its_area_in_tiles"
    ),
    **{f"optim.{key}": node for key, node in OPTIM.items()},
    "epochs": LOOP,
    "batch_size": LOOP,
    **{f"step.{key}": node for key, node in STEP.items()},
    "processes": "tools/test_processes.py::test_both_trainers_share_a_batch_among_processes",
    "workers": LOOP,
    "eval_every": SPLITS,
    **CHECKPOINTS,
    "seed": "detect/training/test_train.py::test_seed_decides_the_first_weights",
    "device": LOOP,
    "precision": LOOP,
    "resume": "detect/training/test_train.py::test_a_resumed_detector_equals_the_unbroken_one",
}


def test_every_key_has_a_test_of_its_meaning():
    check_keys_are_tested(DetectorConfig, TESTS)
