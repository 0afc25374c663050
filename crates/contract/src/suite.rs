//! Contract tests: what every driver of a trait must do, as functions a driver's own tests call.
