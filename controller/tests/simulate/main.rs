//! Who may call whom: against answers that others have worked out and against a reference, as clusters shrink, and as the command line says it.

mod analyzer;
mod calls;
mod cluster;
mod conformance;
mod explained;
mod help;
mod named;
mod recipes;
mod reference;
mod shrinking;
mod translated;
