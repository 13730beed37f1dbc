#!/bin/bash
# The model zoo's format check (its runtests.sh, setup.cfg and pyproject.toml) on the bundles as they are packaged.
#   ci/zoo_style.sh PYTHON
set -e
python="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m tissnet_components package --out "$folder/dist" > "$folder/sums.txt"
for zip in "$folder"/dist/*.zip; do "$python" -m zipfile -e "$zip" "$folder/models"; done
cp -r ci/unit_tests "$folder"
cd "$folder"
"$python" -m isort --check --quiet --profile black --line-length 120 --project models .
"$python" -m black --check --quiet --line-length 120 --skip-magic-trailing-comma \
    --target-version py37 --target-version py38 --target-version py39 .
"$python" -m flake8 --isolated --max-line-length 120 --select B,C,E,F,N,P,T4,W,B9 \
    --ignore E203,E501,E741,W503,W504,C408,N812,B023,B905,B028,B907,C419 \
    --per-file-ignores "__init__.py:F401,__main__.py:F401" .
