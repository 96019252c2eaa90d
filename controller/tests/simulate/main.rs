//! Who may call whom: against answers that others have worked out and against a reference, as clusters shrink, and as the command line says it.

mod analyzer;
mod cluster;
mod help;
mod reference;
mod shrinking;
