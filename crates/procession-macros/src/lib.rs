//! The attributes of the crate `procession`, which re-exports them: use that one.
