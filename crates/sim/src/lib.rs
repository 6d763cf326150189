//! A deterministic simulator, fault models and history checkers for consensus systems.
