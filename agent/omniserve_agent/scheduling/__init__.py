"""Pure scheduling: state, plans and policies. No torch, no I/O."""
