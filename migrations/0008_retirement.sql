-- Origins that write no more and of which nothing is left: their heads are told to nobody, and nothing
-- of them is taken. Once no member holds them they go, with their numbers, which are not used again.
CREATE TABLE __tribune_retired (
    -- __tribune_origins.ordinal.
    ordinal INTEGER NOT NULL PRIMARY KEY
);

-- The number of the last round of which this node knew on disk that it would tell it, and of the last
-- one in which an origin was erased.
ALTER TABLE __tribune_collection ADD COLUMN era INTEGER NOT NULL DEFAULT 1;
ALTER TABLE __tribune_collection ADD COLUMN erased INTEGER NOT NULL DEFAULT 0;
