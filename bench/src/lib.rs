//! Load generators and reports
