//! Who may call whom: against answers that others have worked out, as clusters shrink, and as the command line says it.

mod analyzer;
mod help;
mod shrinking;
