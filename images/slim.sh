#!/bin/sh
# Removes from an environment what only packages' own tests and compilers need, and pip.
set -eu
environment=$1
cd "$environment"/lib/python3.*/site-packages
# numpy.testing reads a file of its tests.
find . -type d \( -name tests -o -name test \) -not -path './numpy/*' -prune -exec rm -r {} +
find . -type f -name '*.a' -delete
if [ -d torch ]; then
    rm -r torch/include
    find torch/bin -type f -not -name torch_shm_manager -delete
fi
# torch asks for setuptools.
[ -d torch ] || "$environment/bin/pip" uninstall --quiet --yes setuptools
"$environment/bin/pip" uninstall --quiet --yes pip
