-- Of each row that the other has told of: the longest life of it.
ALTER TABLE __tribune_confirmed ADD COLUMN length INTEGER NOT NULL DEFAULT 0;
