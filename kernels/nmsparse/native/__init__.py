"""The CPU kernels of ``csrc/``: how they are compiled, shipped and loaded.

``isa`` says what the processor can run, ``compiler`` and ``build`` make a shared object
for one level of it, ``openmp`` finds the thread pool of the process, and ``library``
loads the object. Nothing here imports torch before a kernel is asked for, and nothing
but ``build.cached`` imports a third-party package: ``setup.py`` uses the same code in
an environment that holds setuptools alone. The page about it is docs/native-build.md.
"""
