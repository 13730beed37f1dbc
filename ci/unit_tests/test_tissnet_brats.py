# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import glob
import json
import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from parameterized import parameterized
from utils import check_workflow

BUNDLE_ROOT = "models/tissnet_brats"
SOURCES, TARGET = ["t1", "t1ce", "t2"], "flair"
TINY = {
    "bundle_root": BUNDLE_ROOT,
    "epochs": 1,
    "widths": [2, 2, 2, 2, 2],
    "patch_size": [32, 32, 8],
    "box_size": [32, 32, 12],
    "spacing_mm": [1.0, 1.0, 1.0],
    "discriminator_channels": 2,
}

TEST_CASE_1 = [TINY]  # train the perceptor, train, evaluate
TEST_CASE_2 = [{"bundle_root": BUNDLE_ROOT, "patch_size": [32, 32, 16]}]  # infer with the bundle's own weights


class TestTissNetBrats(unittest.TestCase):
    def setUp(self):
        self.hook = sys.excepthook
        self.dataset_dir = tempfile.mkdtemp()
        sections = {"training": 3, "validation": 1, "test": 1}
        datalist = {"name": "tiny", "sources": SOURCES, "target_modality": TARGET}
        for section, count in sections.items():
            datalist[section] = [self.write_case(f"{section}_{number}") for number in range(count)]
        with open(os.path.join(self.dataset_dir, "datalist.json"), "w") as file:
            json.dump(datalist, file)

    def tearDown(self):
        sys.excepthook = self.hook
        shutil.rmtree(self.dataset_dir)

    def write_case(self, case):
        """A head of noise with a tumor that is brighter."""
        place = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in (36, 36, 16)), indexing="ij"))
        head, tumor = (place**2).sum(0) < 0.8, (place**2).sum(0) < 0.1
        files = {name: os.path.join(self.dataset_dir, f"{case}_{name}.nii.gz") for name in (*SOURCES, TARGET, "seg")}
        for name in (*SOURCES, TARGET):
            image = head * (np.random.randint(80, 120, head.shape) + 100 * tumor)
            nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), files[name])
        nib.save(nib.Nifti1Image(tumor.astype(np.uint8), np.eye(4)), files["seg"])
        image = [files[name] for name in SOURCES]
        return {"case": case, "image": image, "target": files[TARGET], "label": files["seg"]}

    def workflow(self, workflow_type, configs, override):
        configs = [os.path.join(BUNDLE_ROOT, "configs", f"{name}.json") for name in configs]
        return ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=configs if len(configs) > 1 else configs[0],
            logging_file=os.path.join(BUNDLE_ROOT, "configs/logging.conf"),
            meta_file=os.path.join(BUNDLE_ROOT, "configs/metadata.json"),
            dataset_dir=self.dataset_dir,
            output_dir=os.path.join(self.dataset_dir, "eval"),
            **override,
        )

    @parameterized.expand([TEST_CASE_1])
    def test_train_eval_config(self, override):
        override = {**override, "ckpt_dir": os.path.join(self.dataset_dir, "models")}
        for configs in (["train", "direct_segmentation"], ["train"], ["train", "evaluate"]):
            check_workflow(self.workflow("train", configs, override), check_properties=True)
        self.assertTrue(glob.glob(os.path.join(self.dataset_dir, "eval", "**", "*.csv"), recursive=True))

    @parameterized.expand([TEST_CASE_2])
    def test_infer_config(self, override):
        check_workflow(self.workflow("infer", ["inference"], override), check_properties=True)
        (mask,) = glob.glob(os.path.join(self.dataset_dir, "eval", "**", "*_seg.nii.gz"), recursive=True)
        self.assertEqual(nib.load(mask).shape, (36, 36, 16))


if __name__ == "__main__":
    unittest.main()
