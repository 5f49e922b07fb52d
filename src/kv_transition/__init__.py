"""Where does KV-cache compression break an LLM: at which budget, for which method, at which length, and how sure are we?"""

__version__ = "0.1.0"
