-- Parts of pulls that wait for their rest. They are applied together, so that what they tell of
-- becomes visible at once; what a process leaves here the next one forgets.
CREATE TABLE __tribune_staged (
    -- Which pull.
    staging INTEGER NOT NULL,
    -- The part's place in it, rising.
    n       INTEGER NOT NULL,
    -- As it travels: see wire/message.rs.
    part    BLOB    NOT NULL,
    PRIMARY KEY (staging, n)
);
