-- The columns of the cells that were told of in that life, two bytes each.
ALTER TABLE __tribune_confirmed ADD COLUMN columns BLOB NOT NULL DEFAULT x'';
