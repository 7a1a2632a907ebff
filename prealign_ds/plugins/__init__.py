"""The alignment stage and the code-switcher inside other trainers; nothing in the package imports these modules."""
