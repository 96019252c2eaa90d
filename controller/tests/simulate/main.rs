//! Who may call whom, against answers that others have worked out.

mod analyzer;
