"""The paper's studies, one module each: `configs.studies.sizes:ssam_small_200_16x4` is a variant of the study of sizes.

`configs.studies.base` makes the variants; `python -m experiments.sweep sizes` trains all of a study.
"""
