//! Parameters of users' statements: every name and every place is accounted for.

use rusqlite::Statement;

use super::sql::Params;
use super::values::Bound;

/// Why parameters do not fit a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    #[error("Wrong number of parameters passed to query. Got {got}, needed {needed}")]
    Count { got: usize, needed: usize },
    #[error("Invalid parameter name: {0}")]
    Unknown(String),
    #[error("parameter {0} has no value")]
    Missing(String),
    #[error("{0}")]
    Failed(String),
}

/// Binds all parameters, or says which does not fit.
pub fn bind(statement: &mut Statement<'_>, params: &Params) -> Result<(), BindError> {
    let needed = statement.parameter_count();
    match params {
        Params::None if needed == 0 => Ok(()),
        Params::None => Err(BindError::Count { got: 0, needed }),
        Params::Positional(values) if values.len() != needed => {
            Err(BindError::Count { got: values.len(), needed })
        }
        Params::Positional(values) => {
            for (index, value) in values.iter().enumerate() {
                statement.raw_bind_parameter(index + 1, Bound(value)).map_err(failed)?;
            }
            Ok(())
        }
        Params::Named(values) => {
            let mut is_bound = vec![false; needed];
            for (name, value) in values {
                let index = statement.parameter_index(name).map_err(failed)?;
                let index = index.ok_or_else(|| BindError::Unknown(name.clone()))?;
                statement.raw_bind_parameter(index, Bound(value)).map_err(failed)?;
                is_bound[index - 1] = true;
            }
            match is_bound.iter().position(|is_bound| !is_bound) {
                None => Ok(()),
                Some(place) => {
                    let name = statement.parameter_name(place + 1).map(str::to_owned);
                    Err(BindError::Missing(name.unwrap_or_else(|| format!("?{}", place + 1))))
                }
            }
        }
    }
}

fn failed(error: rusqlite::Error) -> BindError {
    BindError::Failed(error.to_string())
}
