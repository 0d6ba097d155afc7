"""From a file of examples to a registered adapter.

    rows -> guard -> split -> task -> train -> evaluations -> temperature -> inputs -> manifest -> registry

Each step that takes long leaves its result in the run's folder, so a run that was killed goes on where it was.
"""
