"""Programs that are run by hand, and by slow tests: killing, fuzzing, mutating."""
