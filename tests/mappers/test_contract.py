"""The contract of every mapper, asked of each YAML in conf/mapper."""

from pathlib import Path

from loraport.mappers.contract import MapperContract

NAMES = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "mapper").glob("*.yaml"))
# The same in the other space.
FACTORS = ("mean", "global_ridge", "pertensor_ridge", "pca_ridge", "pca_mlp")

for _name in NAMES:
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (MapperContract,), {"mapper": _name})
for _name in FACTORS:
    globals()[f"Test_{_name}_of_factors"] = type(
        f"Test_{_name}_of_factors",
        (MapperContract,),
        {"mapper": _name, "overrides": ("mapper.space=factors",)},
    )


def test_every_yaml_is_found() -> None:
    assert {*FACTORS, "cast", "copy", "cross_lora", "noop", "procrustes", "transport"} <= set(NAMES)
