-- Which life of the database this is: 16 random bytes, new at every start. The file tribune.life
-- beside the database holds them, too. NULL: in memory, or never opened since this column is here.
ALTER TABLE __tribune_node ADD COLUMN life BLOB;
-- The boot of the machine that this life began in, as the kernel names it. NULL: not known.
ALTER TABLE __tribune_node ADD COLUMN boot TEXT;
