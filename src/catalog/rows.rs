//! The one place that knows the columns of `schema/`: commands to rows, and rows to things.
