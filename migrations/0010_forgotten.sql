-- Up to which epoch a node was forgotten when tombstones were dropped last; NULL: it was not. Only those
-- are left out where a majority is needed: a word that was noted and never came to anything could be that
-- of either half.
ALTER TABLE __tribune_forgotten ADD COLUMN in_force INTEGER;
UPDATE __tribune_forgotten SET in_force = epoch;

-- The greatest number that was ever given to an origin, to one that is erased perhaps.
ALTER TABLE __tribune_collection ADD COLUMN last_ordinal INTEGER NOT NULL DEFAULT 0;
